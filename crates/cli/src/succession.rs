//! Does a later incarnation continue what a store holds of the one before?
//!
//! Owns the comparison of what an incarnation's first entry says with the newest checkpoints in the store, for the publisher
//! before it signs and for the verifier afterwards. Promises that only a contradiction is called broken: a store that never
//! had the newest checkpoint of the incarnation before, because it lagged behind or is new, cannot tell, and says so. It reads
//! no files: its callers bring the checkpoints.

use agd_core::{Hash, Incarnation, name};

use crate::publish::hex;

/// What a store says about the beginning of a later incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Succession {
    /// It continues the newest checkpoint of the incarnation before.
    Holds,
    /// The store does not have that checkpoint, and nothing that contradicts it.
    Unknown(String),
    /// It continues something else than what the store holds.
    Broken(String),
}

/// Compares what the first entry of the platform log `origin` says with the newest checkpoint (size and root) of each log.
///
/// What it continues is the newest checkpoint that the database had lost. Where that is a tenant's, the platform log that
/// the database closed must have been no shorter than the published one.
///
/// # Errors
/// What `newest` says.
pub fn judge<E>(
    origin: &str,
    beginning: &Incarnation,
    newest: impl Fn(&str) -> Result<Option<(u64, Hash)>, E>,
) -> Result<Succession, E> {
    let Incarnation { published, closed, .. } = beginning;
    let (log_name, incarnation) = name::split_incarnation(origin);
    let before = name::incarnation_origin(log_name, incarnation.saturating_sub(1));
    if closed.origin != before {
        return Ok(Succession::Broken(format!("entry 0 says that the log continues {}, not {before}", closed.origin)));
    }
    let continues = format!("entry 0 continues {} at size {}", published.origin, published.size);
    match newest(&published.origin)? {
        None => return Ok(Succession::Unknown(format!("{continues}, of which this store has no checkpoint"))),
        Some((size, _)) if size < published.size => {
            return Ok(Succession::Unknown(format!("{continues}, and this store ends at size {size}")));
        }
        Some((size, root)) if (size, root) != (published.size, published.root) => {
            return Ok(Succession::Broken(format!(
                "{continues} with root {}, but its newest checkpoint is of size {size} with root {}",
                hex(&published.root),
                hex(&root)
            )));
        }
        Some(_) => {}
    }
    if published.origin == before {
        return Ok(Succession::Holds);
    }
    Ok(match newest(&before)? {
        None => Succession::Unknown(format!("entry 0 continues {before}, of which this store has no checkpoint")),
        Some((size, root)) if size > closed.size || size == closed.size && root != closed.root => {
            Succession::Broken(format!(
                "entry 0 says that {before} was closed at size {} with root {}, but its newest checkpoint is of size {size} \
                 with root {}",
                closed.size,
                hex(&closed.root),
                hex(&root)
            ))
        }
        Some(_) => Succession::Holds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use agd_core::Checkpoint;
    use std::convert::Infallible;

    fn checkpoint(origin: &str, size: u64, root: u8) -> Checkpoint {
        Checkpoint { origin: origin.to_owned(), size, root: [root; 32] }
    }

    /// What a store with these newest checkpoints says of `a/i2`, or of another log.
    fn judged(origin: &str, published: Checkpoint, closed: Checkpoint, store: &[Checkpoint]) -> Succession {
        let beginning = Incarnation { published, closed, reason: "why".to_owned() };
        let newest = |log: &str| {
            Ok::<_, Infallible>(
                store.iter().find(|stored| stored.origin == log).map(|stored| (stored.size, stored.root)),
            )
        };
        match judge(origin, &beginning, newest) {
            Ok(succession) => succession,
            Err(never) => match never {},
        }
    }

    #[test]
    fn the_newest_checkpoint_decides() {
        let of_platform =
            |size, root| judged("a/i2", checkpoint("a", size, root), checkpoint("a", 2, 9), &[checkpoint("a", 9, 1)]);
        assert_eq!(of_platform(9, 1), Succession::Holds);
        assert!(matches!(of_platform(9, 2), Succession::Broken(_)));
        assert!(matches!(of_platform(8, 1), Succession::Broken(_)));
        assert!(matches!(of_platform(10, 1), Succession::Unknown(_)));
        let nothing = judged("a/i2", checkpoint("a", 9, 1), checkpoint("a", 2, 9), &[]);
        assert!(matches!(nothing, Succession::Unknown(_)));
    }

    #[test]
    fn it_continues_the_incarnation_before_it_and_no_other() {
        for origin in ["a/i3", "b/i2"] {
            let broken = judged(origin, checkpoint("a", 9, 1), checkpoint("a", 2, 9), &[checkpoint("a", 9, 1)]);
            assert!(matches!(broken, Succession::Broken(_)), "{origin}");
        }
    }

    #[test]
    fn where_a_tenants_log_was_lost_the_platform_log_was_not() {
        let closed_at = |size, root| {
            let store = [checkpoint("a", 5, 3), checkpoint("a/t/x", 9, 1)];
            judged("a/i2", checkpoint("a/t/x", 9, 1), checkpoint("a", size, root), &store)
        };
        assert_eq!(closed_at(5, 3), Succession::Holds);
        assert_eq!(closed_at(6, 7), Succession::Holds);
        assert!(matches!(closed_at(5, 4), Succession::Broken(_)));
        assert!(matches!(closed_at(4, 3), Succession::Broken(_)));
        let alone = judged("a/i2", checkpoint("a/t/x", 9, 1), checkpoint("a", 5, 3), &[checkpoint("a/t/x", 9, 1)]);
        assert!(matches!(alone, Succession::Unknown(_)));
    }
}
