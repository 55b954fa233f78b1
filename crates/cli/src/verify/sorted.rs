//! Records in order, however many there are: sorted in memory, and on disk where they are more.
//!
//! Owns an external merge sort of keys with payloads. Promises memory bounded by [`BUDGET`] (or one record, where that is
//! larger), and that nobody else can read what it puts aside: its files have no name, and are gone with the process. They lie
//! in the system's folder for temporary files (`TMPDIR`), and together are about as large as what was put in.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, Write as _};

/// Bytes of records that are kept in memory.
pub const BUDGET: usize = 96 << 20;

/// Runs of one level that are merged to one of the next: that many files are open for each level.
const FAN: usize = 64;

/// What a run's file is read with.
const BUFFER: usize = 1 << 16;

/// Takes records.
#[derive(Debug)]
pub struct Sorter {
    budget: usize,
    bytes: Vec<u8>,
    /// Start and length of each key, and where its payload ends.
    places: Vec<(usize, usize, usize)>,
    /// Sorted runs, each with the number of times that it was merged.
    runs: Vec<(u32, File)>,
}

impl Sorter {
    /// An empty one that keeps so many bytes in memory.
    pub fn new(budget: usize) -> Self {
        Self { budget, bytes: Vec::new(), places: Vec::new(), runs: Vec::new() }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// What the system says.
    pub fn push(&mut self, key: &[u8], payload: &[&[u8]]) -> io::Result<()> {
        let length = key.len() + payload.iter().map(|part| part.len()).sum::<usize>();
        let used = self.bytes.len() + self.places.len() * size_of::<(usize, usize, usize)>();
        if !self.places.is_empty() && used + length > self.budget {
            self.spill()?;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        payload.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.places.push((start, key.len(), self.bytes.len()));
        Ok(())
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        let key = |place: &(usize, usize, usize)| bytes.get(place.0..place.0 + place.1).unwrap_or_default();
        self.places.sort_unstable_by(|a, b| key(a).cmp(key(b)));
    }

    /// Puts aside what is in memory.
    fn spill(&mut self) -> io::Result<()> {
        self.sort();
        let mut run = BufWriter::with_capacity(BUFFER, tempfile::tempfile()?);
        for (start, key, end) in &self.places {
            let record = self.bytes.get(*start..*end).unwrap_or_default();
            let (key, payload) = record.split_at_checked(*key).unwrap_or_default();
            write(&mut run, key, payload.len() as u64)?;
            run.write_all(payload)?;
        }
        self.runs.push((0, run.into_inner().map_err(io::IntoInnerError::into_error)?));
        self.bytes.clear();
        self.bytes.shrink_to(self.budget);
        self.places.clear();
        self.merge_runs()
    }

    fn merge_runs(&mut self) -> io::Result<()> {
        loop {
            let level = self.runs.last().map_or(0, |(level, _)| *level);
            let first = self.runs.iter().position(|(other, _)| *other == level).unwrap_or_default();
            if self.runs.len() - first < FAN {
                return Ok(());
            }
            let runs = self.runs.split_off(first).into_iter().map(|(_, file)| file);
            let mut merged = Merged::of(runs)?;
            let mut run = BufWriter::with_capacity(BUFFER, tempfile::tempfile()?);
            while let Some((key, length, from)) = merged.head()? {
                write(&mut run, &key, length)?;
                if io::copy(&mut from.take(length), &mut run)? != length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            self.runs.push((level + 1, run.into_inner().map_err(io::IntoInnerError::into_error)?));
        }
    }

    /// Hands on every record, by key, until `each` fails.
    ///
    /// # Errors
    /// What the system says, and what `each` says.
    pub fn finish(mut self, mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        if self.runs.is_empty() {
            self.sort();
            for (start, key, end) in &self.places {
                let record = self.bytes.get(*start..*end).unwrap_or_default();
                let (key, payload) = record.split_at_checked(*key).unwrap_or_default();
                each(key, payload)?;
            }
            return Ok(());
        }
        self.spill()?;
        self.bytes = Vec::new();
        let mut merged = Merged::of(self.runs.into_iter().map(|(_, file)| file))?;
        let mut payload = Vec::new();
        while let Some((key, length, from)) = merged.head()? {
            payload.clear();
            if from.take(length).read_to_end(&mut payload)? as u64 != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            each(&key, &payload)?;
            payload.shrink_to(BUFFER);
        }
        Ok(())
    }
}

fn write(run: &mut BufWriter<File>, key: &[u8], payload: u64) -> io::Result<()> {
    run.write_all(&(key.len() as u64).to_le_bytes())?;
    run.write_all(&payload.to_le_bytes())?;
    run.write_all(key)
}

/// Runs, read side by side. Of each only the next key is in memory.
struct Merged {
    runs: Vec<BufReader<File>>,
    next: BinaryHeap<Reverse<(Vec<u8>, usize, u64)>>,
    /// The run whose payload was handed out.
    taken: Option<usize>,
}

/// A key, the length of its payload, and where that is read.
type Head<'a> = (Vec<u8>, u64, &'a mut BufReader<File>);

impl Merged {
    fn of(files: impl Iterator<Item = File>) -> io::Result<Self> {
        let mut merged = Self { runs: Vec::new(), next: BinaryHeap::new(), taken: None };
        for mut file in files {
            file.rewind()?;
            merged.runs.push(BufReader::with_capacity(BUFFER, file));
            merged.read_key(merged.runs.len() - 1)?;
        }
        Ok(merged)
    }

    fn read_key(&mut self, run: usize) -> io::Result<()> {
        let Some(from) = self.runs.get_mut(run) else { return Ok(()) };
        let mut length = [0; 8];
        match from.read(&mut length[..1])? {
            0 => return Ok(()),
            _ => from.read_exact(&mut length[1..])?,
        }
        let mut payload = [0; 8];
        from.read_exact(&mut payload)?;
        let mut key = Vec::new();
        let length = u64::from_le_bytes(length);
        if from.take(length).read_to_end(&mut key)? as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.next.push(Reverse((key, run, u64::from_le_bytes(payload))));
        Ok(())
    }

    /// The next key, and where its payload of this length is to be read. All of it must be.
    fn head(&mut self) -> io::Result<Option<Head<'_>>> {
        if let Some(run) = self.taken.take() {
            self.read_key(run)?;
        }
        let Some(Reverse((key, run, length))) = self.next.pop() else { return Ok(None) };
        self.taken = Some(run);
        Ok(self.runs.get_mut(run).map(|from| (key, length, from)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_come_in_order_and_none_is_lost(
            records in proptest::collection::vec(("[a-c]{0,4}", "[x-z]{0,40}"), 0..400), budget in 0_usize..4000,
        ) {
            let mut sorter = Sorter::new(budget);
            for (key, payload) in &records {
                let (a, b) = payload.split_at(payload.len() / 2);
                sorter.push(key.as_bytes(), &[a.as_bytes(), b.as_bytes()]).unwrap();
            }
            let mut found = Vec::new();
            sorter.finish(|key, payload| {
                found.push((String::from_utf8(key.to_vec()).unwrap(), String::from_utf8(payload.to_vec()).unwrap()));
                Ok(())
            }).unwrap();
            prop_assert!(found.is_sorted_by(|a, b| a.0 <= b.0));
            let (mut found, mut records) = (found, records);
            found.sort();
            records.sort();
            prop_assert_eq!(found, records);
        }
    }

    #[test]
    fn many_runs_are_merged_on_the_way() {
        let mut sorter = Sorter::new(0);
        for number in (0..10_000_u32).rev() {
            sorter.push(&number.to_be_bytes(), &[b"x"]).unwrap();
            assert!(sorter.runs.len() < 3 * FAN);
        }
        let mut expected = 0_u32;
        sorter
            .finish(|key, _| {
                assert_eq!(key, expected.to_be_bytes());
                expected += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(expected, 10_000);
    }
}
