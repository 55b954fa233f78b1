//! Which logs a store holds.
//!
//! Owns the walk over the folders. Promises to find every folder that looks like a log, also when its newest checkpoint
//! was taken away, and never to follow a link out of the store.

use crate::store::{self, Kind, Listed, Reader, StoreError};

/// How deep folders are looked at. An origin has at most 255 characters; anything deeper is no log of ours.
const MAX_DEPTH: usize = 130;

/// The folders inside a log's folder that are the log's own.
const OWN_FOLDERS: [&str; 3] = ["tile", store::CHECKPOINTS, "timestamps"];

/// What the walk found.
#[derive(Debug, Default)]
pub struct Discovered {
    /// The origins of all logs, sorted.
    pub origins: Vec<String>,
    /// What could not be looked at, and why.
    pub unchecked: Vec<String>,
}

/// Finds every log of a store.
///
/// # Errors
/// [`StoreError::Io`] when a folder cannot be read.
pub fn discover(reader: &Reader) -> Result<Discovered, StoreError> {
    let mut found = Discovered::default();
    let mut waiting = vec![(String::new(), 0)];
    while let Some((folder, depth)) = waiting.pop() {
        // The folder was listed a moment ago: that it is gone means that somebody is clearing up.
        let names = reader.list(&folder)?.unwrap_or_default();
        let is_log = !folder.is_empty() && names.iter().any(is_mark);
        if is_log {
            found.origins.push(folder.clone());
        }
        for listed in names {
            let own = is_log && OWN_FOLDERS.contains(&listed.name.as_str());
            let control = folder.is_empty() && listed.name == store::CONTROL;
            if own || control || (is_log && listed.name == store::CHECKPOINT) {
                continue;
            }
            let path = match folder.as_str() {
                "" => listed.name,
                folder => format!("{folder}/{}", listed.name),
            };
            match listed.kind {
                Kind::Folder if depth < MAX_DEPTH => waiting.push((path, depth + 1)),
                Kind::Folder => found.unchecked.push(format!("{path}: too deep")),
                Kind::Other => {
                    found.unchecked.push(format!("{path}: not a file or folder, not followed"));
                }
                // A file that is no part of a log proves nothing and harms nothing.
                Kind::File => {}
            }
        }
    }
    found.origins.sort_unstable();
    Ok(found)
}

/// A log's folder has a checkpoint; one that was robbed of it still has checkpoints or tiles.
fn is_mark(listed: &Listed) -> bool {
    let folder = matches!(listed.name.as_str(), "tile" | store::CHECKPOINTS);
    listed.name == store::CHECKPOINT || (folder && listed.kind == Kind::Folder)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn logs_are_found_wherever_they_are_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["a/b/tile/0", "a/b/t/x/checkpoints", "a/b/t/y", "a/b/timestamps/deep", "c/d", ".agd_publish/tmp"]
        {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for file in ["a/b/checkpoint", "a/b/tile/0/checkpoint", "a/b/t/y/checkpoint", "c/d/note"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let found = discover(&Reader::open(dir.path()).unwrap()).unwrap();
        assert_eq!(found.origins, ["a/b", "a/b/t/x", "a/b/t/y"]);
        assert_eq!(found.unchecked.len(), 1);
        assert!(found.unchecked[0].starts_with("link: "));
    }
}
