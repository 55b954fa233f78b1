//! Common scalars as JSON, without calling their type's output function: strings, integers, numeric, dates and times.
//!
//! Owns the digits. Promises the same text as PostgreSQL's own functions (`numeric_out`, `JsonEncodeDateTime` in UTC), which
//! the tests compare; what is out of the ordinary is left to them. Safe code only: it gets the value's bytes.

use agd_core::entry::escape;

/// Appends a decimal integer.
pub fn write_integer(out: &mut Vec<u8>, number: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a number with leading zeros to `width` digits.
fn write_padded(out: &mut Vec<u8>, number: u32, width: usize) {
    let mut digits = [b'0'; 10];
    let mut rest = number;
    for digit in digits[..width].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&digits[..width]);
}

/// Appends a finite `numeric`, given the bytes of its varlena without the length. False, and nothing appended: NaN and the
/// infinities, which are no JSON numbers.
///
/// The format is that of PostgreSQL's `numeric.c`: a header of 2 bytes (short) or 4, then digits of base 10,000.
pub fn write_numeric(out: &mut Vec<u8>, value: &[u8]) -> bool {
    let word = |at: usize| value.get(at..at + 2).map_or(0, |bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let header = word(0);
    let (negative, scale, weight, digits) = match header & 0xc000 {
        0xc000 => return false,
        0x8000 => {
            // Sign 1 bit, scale 6 bits, weight 7 bits in two's complement.
            let weight = i32::from(header & 0x3f) - if header & 0x40 != 0 { 0x40 } else { 0 };
            (header & 0x2000 != 0, usize::from((header & 0x1f80) >> 7), weight, 2)
        }
        sign => (sign == 0x4000, usize::from(header & 0x3fff), i32::from(word(2).cast_signed()), 4),
    };
    let digits = &value[digits.min(value.len())..];
    // The digit of weight `at`: base 10,000, 0 outside of what is stored.
    let digit = |at: i32| -> u32 {
        let index = weight - at;
        if index < 0 {
            return 0;
        }
        let index = index as usize * 2;
        digits.get(index..index + 2).map_or(0, |bytes| u32::from(u16::from_ne_bytes([bytes[0], bytes[1]])))
    };
    if negative {
        out.push(b'-');
    }
    if weight < 0 {
        out.push(b'0');
    } else {
        write_integer(out, i64::from(digit(weight)));
        for at in (0..weight).rev() {
            write_padded(out, digit(at), 4);
        }
    }
    if scale > 0 {
        out.push(b'.');
        let end = out.len() + scale;
        let mut at = -1;
        while out.len() < end {
            write_padded(out, digit(at), 4);
            at -= 1;
        }
        out.truncate(end);
    }
    true
}

/// Days from 0000-03-01 to 2000-01-01 in the proleptic Gregorian calendar.
const DAYS_TO_2000: i64 = 730_425;
const MICROS_A_DAY: i64 = 86_400_000_000;

/// Appends `YYYY-MM-DD` for days since 2000-01-01. False, and nothing appended: a year outside of 1 to 9999.
pub fn write_date(out: &mut Vec<u8>, days: i64) -> bool {
    // Howard Hinnant's civil_from_days, with years that begin in March.
    let shifted = days + DAYS_TO_2000;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
    let year = year_of_era + era * 400 + year;
    if !(1..=9999).contains(&year) {
        return false;
    }
    write_padded(out, year as u32, 4);
    out.push(b'-');
    write_padded(out, month as u32, 2);
    out.push(b'-');
    write_padded(out, day as u32, 2);
    true
}

/// Appends `YYYY-MM-DDThh:mm:ss[.ffffff]` for microseconds since 2000-01-01. False, and nothing appended: a year outside of 1
/// to 9999.
pub fn write_timestamp(out: &mut Vec<u8>, micros: i64) -> bool {
    if !write_date(out, micros.div_euclid(MICROS_A_DAY)) {
        return false;
    }
    let of_day = micros.rem_euclid(MICROS_A_DAY);
    let (seconds, mut fraction) = ((of_day / 1_000_000) as u32, (of_day % 1_000_000) as u32);
    out.push(b'T');
    write_padded(out, seconds / 3600, 2);
    out.push(b':');
    write_padded(out, seconds / 60 % 60, 2);
    out.push(b':');
    write_padded(out, seconds % 60, 2);
    if fraction > 0 {
        let mut width = 6;
        while fraction.is_multiple_of(10) {
            fraction /= 10;
            width -= 1;
        }
        out.push(b'.');
        write_padded(out, fraction, width);
    }
    true
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends two hexadecimal digits for each byte.
pub fn write_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len() * 2);
    for &byte in bytes {
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}

/// Appends a JSON string with the 16 bytes of a uuid in their usual form.
pub fn write_uuid(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut text = *b"\"00000000-0000-0000-0000-000000000000\"";
    let mut at = 1;
    for (index, &byte) in bytes.iter().take(16).enumerate() {
        at += usize::from(matches!(index, 4 | 6 | 8 | 10));
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    out.extend_from_slice(&text);
}

/// How many bytes a text takes with its escapes.
pub fn escaped_size(text: &[u8]) -> usize {
    let extra = |byte: &u8| match byte {
        b'"' | b'\\' | 0x08 | 0x0c | b'\n' | b'\r' | b'\t' => 1,
        0..=0x1f => 5,
        _ => 0,
    };
    text.len() + text.iter().map(extra).sum::<usize>()
}

/// Appends a JSON string: what must be escaped is, everything else stands as it is.
pub fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    escape(out, text);
    out.push(b'"');
}
