//! What the gate has recorded and not yet seen written: the intents of the present transaction.
//!
//! Owns the order of intents per query, relation and operation. Promises: an intent is confirmed at most once, by a row
//! with the same fingerprint; intents that were passed over are handed out as void; a rolled-back subtransaction takes
//! its intents with it. Holds 16 bytes a row.
//!
//! Why first-in-first-out: PostgreSQL queues AFTER ROW events of one query in the order of the writes, and writes rows in
//! the order of their BEFORE triggers. So when a row is confirmed, every older intent of its queue was not written.

use std::collections::TryReserveError;

use crate::fifo::Fifo;

/// Which of the three row operations an intent is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// INSERT
    Insert,
    /// UPDATE
    Update,
    /// DELETE
    Delete,
}

/// One recorded row that awaits its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Keyed hash of the row's final image.
    pub fingerprint: u64,
    /// Where the event lies: block number.
    pub block: u32,
    /// Where the event lies: line pointer.
    pub offset: u16,
}

/// An event to withdraw: its write did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Void {
    /// The event's place.
    pub block: u32,
    /// The event's place.
    pub offset: u16,
    /// The subtransaction that recorded it.
    pub subtransaction: u32,
}

/// There is no memory for what is to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

impl From<TryReserveError> for NoMemory {
    fn from(_: TryReserveError) -> Self {
        NoMemory
    }
}

#[derive(Debug)]
struct Queue {
    level: u32,
    relation: u32,
    operation: Operation,
    subtransaction: u32,
    intents: Fifo<Intent>,
}

/// The intents of one transaction.
#[derive(Debug, Default)]
pub struct Intents {
    queues: Vec<Queue>,
    outstanding: usize,
}

impl Intents {
    /// Nothing is outstanding.
    pub fn is_empty(&self) -> bool {
        self.outstanding == 0
    }

    /// Remembers a recorded row.
    ///
    /// # Errors
    /// [`NoMemory`]; nothing is remembered then.
    pub fn add(
        &mut self,
        level: u32,
        relation: u32,
        operation: Operation,
        subtransaction: u32,
        intent: Intent,
    ) -> Result<(), NoMemory> {
        let found = self.queues.iter_mut().rev().find(|queue| {
            queue.level == level
                && queue.relation == relation
                && queue.operation == operation
                && queue.subtransaction == subtransaction
        });
        match found {
            Some(queue) => queue.intents.try_push(intent)?,
            None => {
                let mut intents = Fifo::default();
                intents.try_push(intent)?;
                self.queues.try_reserve(1)?;
                self.queues.push(Queue { level, relation, operation, subtransaction, intents });
            }
        }
        self.outstanding += 1;
        Ok(())
    }

    /// A row was written. True: it is the one that was recorded first of those that wait, and its record is confirmed.
    /// False: [`Intents::confirm`] must look further. Constant time.
    pub fn confirm_first(&mut self, level: u32, relation: u32, operation: Operation, fingerprint: u64) -> bool {
        let newest = self
            .queues
            .iter_mut()
            .rev()
            .find(|queue| queue.level == level && queue.relation == relation && queue.operation == operation);
        match newest {
            Some(queue) if queue.intents.first().is_some_and(|intent| intent.fingerprint == fingerprint) => {
                queue.intents.pop();
                self.outstanding -= 1;
                true
            }
            _ => false,
        }
    }

    /// A row was written, and these are the fingerprints it may have been recorded by. True: its record is confirmed; the
    /// records passed over are appended to `voids`. False: no record has this image.
    ///
    /// # Errors
    /// [`NoMemory`]; nothing is changed then.
    pub fn confirm(
        &mut self,
        level: u32,
        relation: u32,
        operation: Operation,
        fingerprints: [u64; 2],
        voids: &mut Vec<Void>,
    ) -> Result<bool, NoMemory> {
        for queue in self.queues.iter_mut().rev() {
            if queue.level != level || queue.relation != relation || queue.operation != operation {
                continue;
            }
            let position = queue.intents.iter().position(|intent| fingerprints.contains(&intent.fingerprint));
            if let Some(position) = position {
                let subtransaction = queue.subtransaction;
                voids.try_reserve(position)?;
                self.outstanding -= position + 1;
                voids.extend(queue.intents.take(position).map(|intent| void(intent, subtransaction)));
                queue.intents.pop();
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A query ended: what it recorded and did not write is void. Also drops the queues of deeper levels.
    ///
    /// # Errors
    /// [`NoMemory`]; nothing is changed then.
    pub fn end_query(&mut self, level: u32, voids: &mut Vec<Void>) -> Result<(), NoMemory> {
        let ended = self.queues.iter().filter(|queue| queue.level >= level);
        voids.try_reserve(ended.map(|queue| queue.intents.len()).sum())?;
        self.queues.retain_mut(|queue| {
            if queue.level < level {
                return true;
            }
            let count = queue.intents.len();
            self.outstanding -= count;
            let subtransaction = queue.subtransaction;
            voids.extend(queue.intents.take(count).map(|intent| void(intent, subtransaction)));
            false
        });
        Ok(())
    }

    /// A query ended whose AFTER triggers run with the query above it: its intents go up one level.
    ///
    /// # Errors
    /// [`NoMemory`]: then some may have gone up and others be lost, and the statement must fail.
    pub fn hand_up(&mut self, level: u32) -> Result<(), NoMemory> {
        for index in 0..self.queues.len() {
            if self.queues[index].level != level || self.queues[index].intents.is_empty() {
                continue;
            }
            let mut moved = std::mem::take(&mut self.queues[index].intents);
            let (relation, operation, subtransaction) =
                (self.queues[index].relation, self.queues[index].operation, self.queues[index].subtransaction);
            self.outstanding -= moved.len();
            for intent in moved.take(moved.len()) {
                self.add(level.saturating_sub(1), relation, operation, subtransaction, intent)?;
            }
        }
        self.queues.retain(|queue| queue.level < level);
        Ok(())
    }

    /// A subtransaction was rolled back: it and everything inside it (a larger number) is gone.
    pub fn abort_subtransaction(&mut self, subtransaction: u32) {
        self.queues.retain(|queue| {
            let keep = queue.subtransaction < subtransaction;
            if !keep {
                self.outstanding -= queue.intents.len();
            }
            keep
        });
    }
}

fn void(intent: Intent, subtransaction: u32) -> Void {
    Void { block: intent.block, offset: intent.offset, subtransaction }
}
