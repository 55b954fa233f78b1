//! What a verification leaves for the next one: agd.verified.
//!
//! Owns that table. Promises that what is remembered together was true together: the sizes up to which all logs were
//! counted belong to the sequencer's snapshot beside them. Two verifications never wait for each other here: the one that
//! comes second remembers nothing. Nothing is remembered on a standby, in a read-only transaction, or in one that is not
//! READ COMMITTED (it could not write over what was committed since it began).
#![allow(unsafe_code)] // asks what the transaction may do, takes a lock

use crate::catalog::named;
use crate::error::Result;
use crate::log::storage;
use crate::log::verify::complete::Integrated;
use crate::log::verify::rows::{View, hashes};
use crate::log::verify::tree::Reached;
use agd_core::Hash;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::ffi::c_int;

/// What earlier verifications left.
#[derive(Default)]
pub struct Memory {
    /// Of each log.
    pub logs: HashMap<i32, Known>,
    /// When all logs were counted.
    pub complete: Option<Complete>,
}

/// How far a log was verified by itself, and how far when all logs were.
#[derive(Default)]
pub struct Known {
    /// By itself.
    pub verified: Reached,
    /// Against all events, the platform log and the guard states.
    pub counted: Counted,
}

/// How far a log was held against everything else.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Its leaves.
    pub size: u64,
    /// Its anchors, up to the one at this size. There may have been leaves behind it.
    pub anchored: u64,
}

/// When every event was known to be one leaf.
#[derive(Clone, PartialEq, Eq)]
pub struct Complete {
    /// The sequencer's snapshot.
    pub integrated: Integrated,
    /// The guard state of its last pass.
    pub guard_state: Hash,
}

impl Memory {
    /// Reads it.
    pub fn read(view: &View) -> Result<Self> {
        let mut memory = Memory::default();
        for row in view.rows(
            "SELECT v.log_id, v.tree_size, pg_catalog.encode(v.nodes, 'hex'), v.counted_size, v.anchored_size, v.integrated,
                    pg_catalog.encode(v.guard_state, 'hex')
               FROM agd.verified v",
        )? {
            let [Some(log_id), Some(size), Some(nodes), Some(counted), Some(anchored), integrated, guard_state] =
                row.as_slice()
            else {
                continue;
            };
            let number = |text: &str| text.parse::<u64>().unwrap_or_default();
            let nodes = hashes(&hex::decode(nodes).unwrap_or_default());
            let verified = Reached { size: number(size), nodes };
            let counted = Counted { size: number(counted), anchored: number(anchored) };
            memory.logs.insert(log_id.parse().unwrap_or_default(), Known { verified, counted });
            let digest = guard_state.as_deref().and_then(|hex| Hash::try_from(hex::decode(hex).ok()?).ok());
            if let Some(integrated) = integrated.as_deref().and_then(Integrated::parse)
                && let Some(guard_state) = digest
            {
                memory.complete = Some(Complete { integrated, guard_state });
            }
        }
        Ok(memory)
    }

    /// How far a log was verified by itself.
    pub fn verified(&self, log_id: i32) -> Option<&Reached> {
        self.logs.get(&log_id).map(|known| &known.verified)
    }

    /// How far a log was held against everything else.
    pub fn counted(&self, log_id: i32) -> Counted {
        match self.complete {
            Some(_) => self.logs.get(&log_id).map_or_else(Counted::default, |known| known.counted),
            None => Counted::default(),
        }
    }
}

/// What is new for one log.
#[derive(Default)]
pub struct News {
    /// The log.
    pub log_id: i32,
    /// How far it is verified now.
    pub verified: Option<Reached>,
    /// How far it is counted now.
    pub counted: Option<Counted>,
}

/// Remembers it, if nobody else is at it or was, since `memory` was read. `complete`: the platform log's number, and what
/// the counted sizes belong to.
pub fn remember(memory: &Memory, mut news: Vec<News>, complete: Option<(i32, &Complete)>) -> Result<()> {
    let complete = complete.filter(|(_, complete)| memory.complete.as_ref() != Some(complete));
    if news.is_empty() && complete.is_none() || !may_remember()? {
        return Ok(());
    }
    if Memory::read(&View::open())?.complete != memory.complete {
        return Ok(());
    }
    let (mut ids, mut sizes, mut nodes, mut counted, mut anchored) = (vec![], vec![], vec![], vec![], vec![]);
    // The platform log's row tells what the counted sizes belong to, whether the log has leaves or not.
    if let Some((platform, _)) = complete
        && news.iter().all(|news| news.log_id != platform)
    {
        news.push(News { log_id: platform, ..News::default() });
    }
    for News { log_id, verified, counted: new } in news {
        ids.push(log_id);
        sizes.push(verified.as_ref().map(|verified| verified.size as i64));
        nodes.push(verified.map(|verified| verified.nodes.as_flattened().to_vec()));
        counted.push(new.map(|counted| counted.size as i64));
        anchored.push(new.map(|counted| counted.anchored as i64));
    }
    storage::writing(|| {
        Spi::run_with_args(
        "INSERT INTO agd.verified (log_id, tree_size, nodes, counted_size, anchored_size, verified_at)
         SELECT n.log_id, COALESCE(n.tree_size, 0), COALESCE(n.nodes, ''), COALESCE(n.counted_size, 0),
                COALESCE(n.anchored_size, 0), pg_catalog.clock_timestamp()
           FROM ROWS FROM (pg_catalog.unnest($1::int[]), pg_catalog.unnest($2::bigint[]), pg_catalog.unnest($3::bytea[]),
                           pg_catalog.unnest($4::bigint[]), pg_catalog.unnest($5::bigint[]))
                AS n (log_id, tree_size, nodes, counted_size, anchored_size)
         ON CONFLICT (log_id) DO UPDATE
           SET tree_size = CASE WHEN EXCLUDED.tree_size > 0 THEN EXCLUDED.tree_size ELSE agd.verified.tree_size END,
               nodes = CASE WHEN EXCLUDED.tree_size > 0 THEN EXCLUDED.nodes ELSE agd.verified.nodes END,
               counted_size = CASE WHEN EXCLUDED.counted_size > 0 THEN EXCLUDED.counted_size ELSE agd.verified.counted_size END,
               anchored_size = CASE WHEN EXCLUDED.counted_size > 0 THEN EXCLUDED.anchored_size ELSE agd.verified.anchored_size END,
               verified_at = EXCLUDED.verified_at",
        &[ids.into(), sizes.into(), nodes.into(), counted.into(), anchored.into()],
    )
    })?;
    if let Some((platform, complete)) = complete {
        storage::writing(|| {
            Spi::run_with_args(
                "UPDATE agd.verified
                SET integrated = CASE WHEN log_id = $1 THEN $2::pg_catalog.pg_snapshot END,
                    guard_state = CASE WHEN log_id = $1 THEN $3 END
              WHERE log_id = $1 OR integrated IS NOT NULL",
                &[platform.into(), complete.integrated.text.as_str().into(), complete.guard_state.as_slice().into()],
            )
        })?;
    }
    Ok(())
}

fn may_remember() -> Result<bool> {
    let table = named(c"verified")?;
    // SAFETY: reads the transaction's state; a lock that is let go of when the transaction ends, and not waited for. It is
    // in the way of nobody but of another verification that wants to remember.
    Ok(unsafe {
        !pg_sys::RecoveryInProgress()
            && !pg_sys::XactReadOnly
            && pg_sys::XactIsoLevel == pg_sys::XACT_READ_COMMITTED as c_int
            && pg_sys::ConditionalLockRelationOid(table, pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE)
    })
}
