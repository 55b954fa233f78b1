//! Reading agd's own tables through SQL.
//!
//! Owns the one way to ask for a single value. Promises not to assign a transaction id, so that reads work on a standby
//! and leave no trace on a primary (pgrx's `Spi::get_one` assigns one).

use crate::error::Result;
use pgrx::datum::{DatumWithOid, FromDatum, IntoDatum};
use pgrx::spi::Spi;

/// The first column of the first row; None for NULL or no row.
pub fn one<T: FromDatum + IntoDatum>(query: &str, arguments: &[DatumWithOid<'_>]) -> Result<Option<T>> {
    Spi::connect(|client| {
        let rows = client.select(query, Some(1), arguments)?;
        if rows.is_empty() { Ok(None) } else { Ok(rows.first().get_one::<T>()?) }
    })
}
