//! Row images: a row as JSON text, and as a fingerprint.
//!
//! Owns how each type is written. Promises: valid JSON; the same text whatever the session's settings; and for every
//! column `(image->>'column')::type` is the value again. So a number, a boolean and a JSON container stand for
//! themselves, everything else is the string of its type's output. Generated columns are left out: they follow from the
//! others. Never looks at more than one row.
#![allow(unsafe_code)] // reads datums by their type's layout

use crate::catalog::{Columns, attribute, varlena};
use crate::error::{Error, Result};
use crate::event;
use crate::guard::redact::Redaction;
use crate::guard::{json, scalar};
use crate::memory;
use pgrx::pg_sys;
use siphasher::sip::SipHasher13;
use std::ffi::{CStr, c_char, c_int};
use std::hash::Hasher;

/// How a column's value is written.
enum Format {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    /// text, varchar, char(n): the bytes are the text.
    Text,
    Uuid,
    Bytea,
    /// date, time, timetz, timestamp, timestamptz: ISO 8601, zoned ones in UTC.
    DateTime(pg_sys::Oid),
    /// json, jsonb: a container as it is, a scalar as the string of its text (so that jsonb null is not SQL NULL), and so
    /// a container of type json that jsonb could not hold.
    Json {
        checked: bool,
    },
    /// Any other type: its output function, which depends on no setting, or on settings that are pinned meanwhile.
    Output(Pinning),
}

/// What must be pinned while a type's output function runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Pinning {
    /// The output depends on no setting.
    Nothing,
    /// Date, interval, float, bytea and xml styles.
    Styles,
    /// Also search_path, lc_monetary and identifier quoting, through the settings machinery.
    Everything,
}

/// One column of a guarded table.
struct Column {
    index: usize,
    name: String,
    /// `"name":` escaped, ready to be written.
    label: Vec<u8>,
    format: Format,
    output: pg_sys::FmgrInfo,
    by_value: bool,
    length: i16,
}

/// A table's row type, prepared once.
pub struct RowFormat {
    columns: Vec<Column>,
    /// Indexes into `columns`, in the primary key's order.
    key: Vec<usize>,
    /// No column is generated: a small row is stored byte by byte as BEFORE sees it.
    stored_as_given: bool,
    redaction: Option<Redaction>,
}

/// Tuples up to this size are never compressed or stored out of line (TOAST_TUPLE_THRESHOLD is 2,032 with pages of 8 kB).
const NEVER_TOASTED: usize = pg_sys::BLCKSZ as usize / 4 - 48;

// Settings that PostgreSQL exports but whose headers pgrx does not read.
unsafe extern "C" {
    static mut bytea_output: c_int;
    static mut xmlbinary: c_int;
}

impl RowFormat {
    /// Prepares a row type. `key_attributes`: the primary key's attribute numbers, in its order. 55000 when a column that
    /// is to be redacted is not there, or is part of the key.
    pub fn new(descriptor: pg_sys::TupleDesc, key_attributes: &[i16], redaction: Option<Redaction>) -> Result<Self> {
        let mut columns = Vec::new();
        let mut stored_as_given = true;
        // SAFETY: the descriptor is alive (its relation is open) and has natts attributes.
        let count = unsafe { (*descriptor).natts as usize };
        for index in 0..count {
            // SAFETY: index < natts.
            let attribute = unsafe { &*attribute(descriptor, index) };
            stored_as_given &= attribute.attgenerated == 0;
            if attribute.attisdropped || attribute.attgenerated != 0 {
                continue;
            }
            // SAFETY: attname is a NUL-terminated name.
            let name = unsafe { CStr::from_ptr(attribute.attname.data.as_ptr()) }.to_string_lossy().into_owned();
            let mut label = Vec::with_capacity(name.len() + 3);
            scalar::write_string(&mut label, name.as_bytes());
            label.push(b':');
            let mut output = pg_sys::FmgrInfo::default();
            // SAFETY: catalog look-up of the type's output function, kept for the life of this format.
            unsafe {
                let mut function = pg_sys::InvalidOid;
                let mut is_varlena = false;
                pg_sys::getTypeOutputInfo(attribute.atttypid, &mut function, &mut is_varlena);
                pg_sys::fmgr_info_cxt(function, &mut output, pg_sys::TopMemoryContext);
            }
            columns.push(Column {
                index,
                name,
                label,
                format: format_of(attribute.atttypid),
                output,
                by_value: attribute.attbyval,
                length: attribute.attlen,
            });
        }
        let key = key_attributes
            .iter()
            .filter_map(|&number| columns.iter().position(|column| column.index + 1 == number as usize))
            .collect();
        let format = RowFormat { columns, key, stored_as_given, redaction };
        format.check_redaction()?;
        Ok(format)
    }

    /// Whoever renames a column must not thereby have it recorded in plain.
    fn check_redaction(&self) -> Result<()> {
        for name in self.redaction.iter().flat_map(Redaction::columns) {
            let problem = match self.columns.iter().position(|column| column.name == *name) {
                None => "is not there any more",
                Some(index) if self.key.contains(&index) => "is part of the primary key now",
                Some(_) => continue,
            };
            return Err(Error::WrongState {
                message: format!("column \"{name}\", which must be recorded as a digest only, {problem}"),
                hint: "Undo that, or agd.unguard() the table and guard it again with the columns as they are now."
                    .into(),
            });
        }
        Ok(())
    }

    /// Appends the whole row as JSON.
    pub fn write_image(&self, row: &Columns, out: &mut Vec<u8>) {
        let Some(redaction) = &self.redaction else {
            return self.write(out, row, self.columns.iter(), Column::write);
        };
        let mut key = Vec::new();
        self.write_key(row, &mut key);
        let mut plain = Vec::new();
        self.write(out, row, self.columns.iter(), |column, out, begin, value| {
            if !redaction.columns().contains(&column.name) {
                return column.write(out, begin, value);
            }
            plain.clear();
            column.write(&mut plain, 0, value);
            redaction.write(out, &column.name, &key, &plain);
        });
    }

    /// Appends the primary key's columns as JSON.
    pub fn write_key(&self, row: &Columns, out: &mut Vec<u8>) {
        self.write(out, row, self.key.iter().map(|&index| &self.columns[index]), Column::write);
    }

    fn write<'a>(
        &'a self,
        out: &mut Vec<u8>,
        row: &Columns,
        columns: impl Iterator<Item = &'a Column>,
        mut write_value: impl FnMut(&Column, &mut Vec<u8>, usize, pg_sys::Datum),
    ) {
        let begin = out.len();
        out.push(b'{');
        for (position, column) in columns.enumerate() {
            if position > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&column.label);
            make_more_room(out, begin);
            match row.get(column.index) {
                Some(value) => write_value(column, out, begin, value),
                None => out.extend_from_slice(b"null"),
            }
        }
        out.push(b'}');
        event::check_image_size(out.len() - begin);
    }

    /// A column's value as text, None for SQL NULL or an unknown column.
    pub fn text_of(&self, row: &Columns, name: &str) -> Option<String> {
        let column = self.columns.iter().find(|column| column.name == name)?;
        let value = row.get(column.index)?;
        let mut out = Vec::new();
        column.write(&mut out, 0, value);
        let text = String::from_utf8_lossy(&out).into_owned();
        Some(text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).map(str::to_owned).unwrap_or(text))
    }

    /// A keyed hash over a tuple as it lies there, where that is also how it is stored: nothing of it is computed later
    /// (generated columns), compressed or stored out of line. None: [`RowFormat::fingerprint`] must do. The key is this
    /// process's own, so nobody can craft two rows with one fingerprint.
    pub fn quick_fingerprint(&self, tuple: pg_sys::HeapTuple) -> Option<u64> {
        // SAFETY: a trigger's tuple is valid for the call; its header is followed by null bits and columns up to t_len.
        let bytes = unsafe {
            let (header, length) = ((*tuple).t_data, (*tuple).t_len as usize);
            let out_of_line = (*header).t_infomask as u32 & pg_sys::HEAP_HASEXTERNAL != 0;
            if !self.stored_as_given || out_of_line || length > NEVER_TOASTED {
                return None;
            }
            let begin = std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_bits);
            std::slice::from_raw_parts(header.cast::<u8>().add(begin), length - begin)
        };
        let (k0, k1) = fingerprint_key();
        let mut hash = SipHasher13::new_with_keys(k0, !k1); // not the other fingerprint's
        hash.write(bytes);
        Some(hash.finish())
    }

    /// A keyed hash over every column that is written: equal for the row that BEFORE saw and the row that was stored,
    /// whatever compression and out-of-line storage did in between.
    pub fn fingerprint(&self, row: &Columns) -> u64 {
        let (k0, k1) = fingerprint_key();
        let mut hash = SipHasher13::new_with_keys(k0, k1);
        for column in &self.columns {
            let Some(value) = row.get(column.index) else {
                hash.write_u8(0);
                continue;
            };
            hash.write_u8(1);
            match (column.by_value, column.length) {
                (true, length) => hash.write_u64(value.value() as u64 & low_bytes(length)),
                (false, -1) => {
                    // SAFETY: attlen -1 is a varlena.
                    let bytes = unsafe { varlena(value) };
                    hash.write_usize(bytes.len());
                    hash.write(bytes);
                }
                (false, -2) => {
                    // SAFETY: attlen -2 is a C string.
                    hash.write(unsafe { CStr::from_ptr(value.cast_mut_ptr()) }.to_bytes_with_nul());
                }
                (false, length) => {
                    // SAFETY: a fixed-length by-reference value has attlen bytes.
                    hash.write(unsafe { std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), length as usize) });
                }
            }
        }
        hash.finish()
    }
}

fn low_bytes(length: i16) -> u64 {
    if length >= 8 { u64::MAX } else { (1u64 << (8 * length as u32)) - 1 }
}

fn fingerprint_key() -> (u64, u64) {
    thread_local! {
        static KEY: std::cell::Cell<Option<(u64, u64)>> = const { std::cell::Cell::new(None) };
    }
    if let Some(key) = KEY.get() {
        return key;
    }
    let mut seed = [0u8; 16];
    // SAFETY: fills the buffer; false means that there is no randomness to be had.
    if !unsafe { pg_sys::pg_strong_random(seed.as_mut_ptr().cast(), seed.len()) } {
        crate::error::Error::Internal("agd: no random numbers to be had from the operating system".into()).raise();
    }
    let (low, high) = seed.split_at(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    let key = (number(low), number(high));
    KEY.set(Some(key));
    key
}

/// The way a type is written, by its oid; domains as their base type.
fn format_of(type_oid: pg_sys::Oid) -> Format {
    // SAFETY: catalog look-up; a type that is no domain is its own base type.
    let base = unsafe { pg_sys::getBaseType(type_oid) };
    match base {
        pg_sys::BOOLOID => Format::Bool,
        pg_sys::INT2OID => Format::Int2,
        pg_sys::INT4OID => Format::Int4,
        pg_sys::INT8OID => Format::Int8,
        pg_sys::FLOAT4OID => Format::Float4,
        pg_sys::FLOAT8OID => Format::Float8,
        pg_sys::NUMERICOID => Format::Numeric,
        pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Format::Text,
        pg_sys::UUIDOID => Format::Uuid,
        pg_sys::BYTEAOID => Format::Bytea,
        pg_sys::DATEOID | pg_sys::TIMEOID | pg_sys::TIMETZOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => {
            Format::DateTime(base)
        }
        pg_sys::JSONOID => Format::Json { checked: true },
        pg_sys::JSONBOID => Format::Json { checked: false },
        other => Format::Output(pinning_of(other)),
    }
}

/// What the output of a type can depend on. Unknown types get everything pinned.
fn pinning_of(type_oid: pg_sys::Oid) -> Pinning {
    // SAFETY: catalog look-ups by oid.
    unsafe {
        let base = pg_sys::getBaseType(type_oid);
        let element = pg_sys::get_element_type(base);
        if element != pg_sys::InvalidOid {
            return pinning_of(element);
        }
        match pg_sys::get_typtype(base) as u8 {
            b'e' => return Pinning::Nothing,
            b'r' => return pinning_of(pg_sys::get_range_subtype(base)),
            b'm' => return pinning_of(pg_sys::get_range_subtype(pg_sys::get_multirange_range(base))),
            b'b' => {}
            _ => return Pinning::Everything,
        }
        match base {
            pg_sys::BOOLOID
            | pg_sys::INT2OID
            | pg_sys::INT4OID
            | pg_sys::INT8OID
            | pg_sys::NUMERICOID
            | pg_sys::TEXTOID
            | pg_sys::VARCHAROID
            | pg_sys::BPCHAROID
            | pg_sys::CHAROID
            | pg_sys::NAMEOID
            | pg_sys::UUIDOID
            | pg_sys::INETOID
            | pg_sys::CIDROID
            | pg_sys::MACADDROID
            | pg_sys::MACADDR8OID
            | pg_sys::BITOID
            | pg_sys::VARBITOID
            | pg_sys::OIDOID
            | pg_sys::XIDOID
            | pg_sys::XID8OID
            | pg_sys::TIDOID
            | pg_sys::PG_LSNOID
            | pg_sys::TSVECTOROID
            | pg_sys::JSONOID
            | pg_sys::JSONBOID
            | pg_sys::JSONPATHOID => Pinning::Nothing,
            pg_sys::FLOAT4OID
            | pg_sys::FLOAT8OID
            | pg_sys::BYTEAOID
            | pg_sys::DATEOID
            | pg_sys::TIMEOID
            | pg_sys::TIMETZOID
            | pg_sys::TIMESTAMPOID
            | pg_sys::TIMESTAMPTZOID
            | pg_sys::INTERVALOID
            | pg_sys::POINTOID
            | pg_sys::LSEGOID
            | pg_sys::PATHOID
            | pg_sys::BOXOID
            | pg_sys::POLYGONOID
            | pg_sys::LINEOID
            | pg_sys::CIRCLEOID => Pinning::Styles,
            _ => Pinning::Everything,
        }
    }
}

impl Column {
    /// Appends the value; the image it belongs to begins at `begin`.
    fn write(&self, out: &mut Vec<u8>, begin: usize, value: pg_sys::Datum) {
        match &self.format {
            Format::Bool => out.extend_from_slice(if value.value() & 0xff != 0 { b"true" } else { b"false" }),
            Format::Int2 => scalar::write_integer(out, i64::from(value.value() as i16)),
            Format::Int4 => scalar::write_integer(out, i64::from(value.value() as i32)),
            Format::Int8 => scalar::write_integer(out, value.value() as i64),
            Format::Float4 => {
                let number = f32::from_bits(value.value() as u32);
                if number.is_finite() {
                    out.extend_from_slice(ryu::Buffer::new().format_finite(number).as_bytes());
                } else {
                    write_special_float(out, f64::from(number));
                }
            }
            Format::Float8 => {
                let number = f64::from_bits(value.value() as u64);
                if number.is_finite() {
                    out.extend_from_slice(ryu::Buffer::new().format_finite(number).as_bytes());
                } else {
                    write_special_float(out, number);
                }
            }
            Format::Numeric => {
                // SAFETY: numeric is a varlena.
                if !scalar::write_numeric(out, unsafe { varlena(value) }) {
                    self.with_output(value, Pinning::Nothing, |text| write_text(out, begin, text)); // NaN, Infinity
                }
            }
            // SAFETY: text, varchar and bpchar are varlenas of database-encoded text (UTF-8, checked at install).
            Format::Text => write_text(out, begin, unsafe { varlena(value) }),
            Format::Uuid => {
                // SAFETY: a uuid is 16 bytes by reference.
                let bytes = unsafe { std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), 16) };
                scalar::write_uuid(out, bytes);
            }
            Format::Bytea => {
                // SAFETY: bytea is a varlena.
                let bytes = unsafe { varlena(value) };
                make_room(out, begin, 2 * bytes.len());
                out.extend_from_slice(b"\"\\\\x");
                scalar::write_hex(out, bytes);
                out.push(b'"');
            }
            Format::DateTime(type_oid) => {
                out.push(b'"');
                let quick = match *type_oid {
                    pg_sys::DATEOID => scalar::write_date(out, i64::from(value.value() as i32)),
                    pg_sys::TIMESTAMPOID => scalar::write_timestamp(out, value.value() as i64),
                    pg_sys::TIMESTAMPTZOID if scalar::write_timestamp(out, value.value() as i64) => {
                        out.extend_from_slice(b"+00:00");
                        true
                    }
                    _ => false,
                };
                if quick {
                    out.push(b'"');
                    return;
                }
                out.pop();
                let mut buffer = [0 as c_char; 128 + 1]; // MAXDATELEN + 1
                let utc: c_int = 0;
                // SAFETY: the buffer has the size that JsonEncodeDateTime asks for; it ends the text with NUL.
                let text = unsafe {
                    pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), value, *type_oid, &utc);
                    CStr::from_ptr(buffer.as_ptr())
                };
                scalar::write_string(out, text.to_bytes());
            }
            Format::Json { checked } => self.with_output(value, Pinning::Nothing, |text| {
                let is_container = matches!(text.trim_ascii_start().first(), Some(b'{' | b'['));
                if is_container && (!checked || json::fits_jsonb(text)) {
                    make_room(out, begin, text.len());
                    out.extend_from_slice(text);
                } else {
                    write_text(out, begin, text);
                }
            }),
            Format::Output(pinning) => self.with_output(value, *pinning, |text| write_text(out, begin, text)),
        }
    }

    /// Calls the type's output function under pinned settings and lends its text.
    fn with_output(&self, value: pg_sys::Datum, pinning: Pinning, mut use_text: impl FnMut(&[u8])) {
        let _styles = (pinning >= Pinning::Styles).then(Styles::pin);
        let _settings = (pinning >= Pinning::Everything).then(Settings::pin);
        // SAFETY: `output` is this type's output function; it returns a palloc'd C string.
        unsafe {
            let text = pg_sys::OutputFunctionCall((&raw const self.output).cast_mut(), value);
            use_text(CStr::from_ptr(text).to_bytes());
            pg_sys::pfree(text.cast());
        }
    }
}

/// The output styles, set aside while this lives. Plain assignments: cheap enough for every row.
struct Styles {
    date_style: c_int,
    interval_style: c_int,
    float_digits: c_int,
    bytea: c_int,
    xml: c_int,
    timezone: *mut pg_sys::pg_tz,
}

impl Styles {
    fn pin() -> Self {
        // SAFETY: these globals back settings and are read by output functions; they are put back on drop, on errors
        // too, before anything else can look at them.
        unsafe {
            let kept = Styles {
                date_style: pg_sys::DateStyle,
                interval_style: pg_sys::IntervalStyle,
                float_digits: pg_sys::extra_float_digits,
                bytea: bytea_output,
                xml: xmlbinary,
                timezone: pg_sys::session_timezone,
            };
            pg_sys::DateStyle = pg_sys::USE_ISO_DATES as c_int;
            pg_sys::IntervalStyle = pg_sys::INTSTYLE_POSTGRES as c_int;
            pg_sys::extra_float_digits = 1;
            bytea_output = 1; // BYTEA_OUTPUT_HEX
            xmlbinary = 0; // XMLBINARY_BASE64
            let utc = pg_sys::pg_tzset(c"UTC".as_ptr());
            if !utc.is_null() {
                pg_sys::session_timezone = utc;
            }
            kept
        }
    }
}

impl Drop for Styles {
    fn drop(&mut self) {
        // SAFETY: see pin().
        unsafe {
            pg_sys::DateStyle = self.date_style;
            pg_sys::IntervalStyle = self.interval_style;
            pg_sys::extra_float_digits = self.float_digits;
            bytea_output = self.bytea;
            xmlbinary = self.xml;
            pg_sys::session_timezone = self.timezone;
        }
    }
}

/// search_path, lc_monetary and quote_all_identifiers, pinned through PostgreSQL's own nesting of settings.
struct Settings(c_int);

impl Settings {
    fn pin() -> Self {
        // SAFETY: the pattern of functions with SET clauses: a new nest level, set, and undo at its end. On an error the
        // transaction's abort undoes it.
        unsafe {
            let level = pg_sys::NewGUCNestLevel();
            for (name, value) in
                [(c"search_path", c"pg_catalog, pg_temp"), (c"lc_monetary", c"C"), (c"quote_all_identifiers", c"off")]
            {
                pg_sys::set_config_option(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_USERSET,
                    pg_sys::GucSource::PGC_S_SESSION,
                    pg_sys::GucAction::GUC_ACTION_SAVE,
                    true,
                    0,
                    false,
                );
            }
            Settings(level)
        }
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: ends the nest level that pin() began.
            unsafe { pg_sys::AtEOXact_GUC(false, self.0) };
        }
    }
}

fn write_special_float(out: &mut Vec<u8>, number: f64) {
    out.extend_from_slice(if number.is_nan() {
        b"\"NaN\"".as_slice()
    } else if number > 0.0 {
        b"\"Infinity\"".as_slice()
    } else {
        b"\"-Infinity\"".as_slice()
    });
}

/// Values from this size on are measured before they are written.
const LARGE: usize = 1 << 16;

/// Room for a large value, had in one piece or not at all: a vector that cannot grow would end the whole server, and an
/// image that cannot be recorded need not be made. The image begins at `begin`.
fn make_room(out: &mut Vec<u8>, begin: usize, bytes: usize) {
    if bytes < LARGE {
        return;
    }
    event::check_image_size((out.len() - begin).saturating_add(bytes));
    if memory::fallible(|| out.try_reserve(bytes + LARGE)).is_err() {
        Error::OutOfMemory(format!("agd: no memory for a row image of {bytes} bytes")).raise();
    }
}

/// Many values that are not large: from a certain size of the image on, there is always room for one more of them, or none
/// is to be had.
fn make_more_room(out: &mut Vec<u8>, begin: usize) {
    // A byte becomes six at most.
    const ONE_MORE: usize = 6 * LARGE;
    let written = out.len() - begin;
    if written >= LARGE && out.capacity() - out.len() < ONE_MORE {
        event::check_image_size(written);
        if memory::fallible(|| out.try_reserve(written.max(ONE_MORE))).is_err() {
            Error::OutOfMemory(format!("agd: no memory for a row image of {written} bytes or more")).raise();
        }
    }
}

fn write_text(out: &mut Vec<u8>, begin: usize, text: &[u8]) {
    if text.len() >= LARGE {
        make_room(out, begin, scalar::escaped_size(text));
    }
    scalar::write_string(out, text);
}
