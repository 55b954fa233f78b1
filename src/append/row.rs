//! A row that is being put together, in the bytes in which a tuple keeps it.
//!
//! Owns the layout of values within a tuple. Promises nothing about the table: [`super::Table::open`] compares the two.

use pgrx::pg_sys;
use std::cell::RefCell;

/// The largest row, in bytes: PostgreSQL's limit for one allocation, less what it adds.
pub(super) const MAX_ROW: usize = 0x3fff_ffff - 65_536;

/// How a column of our own tables is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Eight bytes, aligned: xid8, timestamptz.
    Eight,
    /// Four bytes, aligned: int.
    Four,
    /// Sixteen bytes: uuid.
    Uuid,
    /// A length and as many bytes: text, json, bytea.
    Bytes,
}

/// A row of `N` columns that is being put together, in the form in which a tuple keeps it. Columns are set in ascending order;
/// those that are left out are NULL. The first columns are those of the primary key, in its order.
///
/// `heap_form_tuple` would measure each value, copy it and look up how it is stored; here all of that is known. The layout
/// is that of PostgreSQL's manual, "Database Page Layout", and [`super::Table::open`] compares it with the table's.
pub struct Row<const N: usize> {
    /// The columns so far, as they follow the tuple's header.
    pub(super) data: Vec<u8>,
    /// Which columns are set.
    pub(super) present: [bool; N],
    /// The values of the first columns.
    pub(super) key: [pg_sys::Datum; 2],
}

thread_local! {
    /// The data of the last row, to be used again.
    static DATA: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<const N: usize> Row<N> {
    /// A row of NULLs.
    pub fn new() -> Self {
        // Taken, not borrowed: what writes an image may itself record events.
        let mut data = DATA.take();
        data.clear();
        Row { data, present: [false; N], key: [pg_sys::Datum::from(0); 2] }
    }

    fn begin(&mut self, column: usize, alignment: usize) {
        debug_assert!(!self.present[column..].contains(&true), "columns are set in ascending order");
        self.present[column] = true;
        self.data.resize(self.data.len().next_multiple_of(alignment), 0);
    }

    /// Sets a column of eight bytes.
    pub fn set_eight(&mut self, column: usize, value: i64) {
        self.begin(column, 8);
        self.data.extend_from_slice(&value.to_ne_bytes());
        if let Some(key) = self.key.get_mut(column) {
            *key = pg_sys::Datum::from(value);
        }
    }

    /// Sets a column of four bytes.
    pub fn set_four(&mut self, column: usize, value: i32) {
        self.begin(column, 4);
        self.data.extend_from_slice(&value.to_ne_bytes());
        if let Some(key) = self.key.get_mut(column) {
            *key = pg_sys::Datum::from(value);
        }
    }

    /// Sets a column of type uuid.
    pub fn set_uuid(&mut self, column: usize, value: &[u8; 16]) {
        self.begin(column, 1);
        self.data.extend_from_slice(value);
    }

    /// Sets a column of a variable-length type.
    pub fn set_bytes(&mut self, column: usize, value: &[u8]) {
        if value.len() <= SHORT {
            self.begin(column, 1);
            self.data.push(short_header(value.len()));
            self.data.extend_from_slice(value);
        } else {
            self.write(column, |out| out.extend_from_slice(value));
        }
    }

    /// Sets a column of type text; None: NULL.
    pub fn set_text(&mut self, column: usize, value: Option<&str>) {
        if let Some(value) = value {
            self.set_bytes(column, value.as_bytes());
        }
    }

    /// Sets a column of a variable-length type to what `write` appends.
    pub fn write(&mut self, column: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let unaligned = self.data.len();
        self.begin(column, 4);
        let begin = self.data.len();
        self.data.extend_from_slice(&[0; pg_sys::VARHDRSZ]);
        write(&mut self.data);
        let length = self.data.len() - begin - pg_sys::VARHDRSZ;
        if length <= SHORT {
            // A short value has a header of one byte and no alignment.
            self.data[unaligned] = short_header(length);
            self.data.copy_within(begin + pg_sys::VARHDRSZ.., unaligned + 1);
            self.data.truncate(unaligned + 1 + length);
        } else {
            let size = (length + pg_sys::VARHDRSZ).min(MAX_ROW) as u32;
            let header = if cfg!(target_endian = "little") { size << 2 } else { size };
            self.data[begin..begin + pg_sys::VARHDRSZ].copy_from_slice(&header.to_ne_bytes());
        }
    }
}

/// The longest value with a header of one byte.
const SHORT: usize = 126;

fn short_header(length: usize) -> u8 {
    let size = length as u8 + 1;
    if cfg!(target_endian = "little") { (size << 1) | 1 } else { size | 0x80 }
}

impl<const N: usize> Drop for Row<N> {
    fn drop(&mut self) {
        // A rare giant is not kept.
        if self.data.capacity() <= 1 << 20 {
            DATA.set(std::mem::take(&mut self.data));
        }
    }
}
