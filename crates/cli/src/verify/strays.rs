//! Files in a log's `tile/` folder that its newest checkpoint does not ask for.
//!
//! Owns the walk over that folder. What it finds proves nothing and harms nothing: it is counted and noted.

use agd_core::TileCoord;

use super::log::Check;
use crate::store;

impl Check<'_> {
    /// Counts what lies in `tile/` beyond the newest checkpoint, or is no tile at all.
    pub(super) fn strays(&mut self, end: u64) {
        let origin = self.job.origin;
        let (mut beyond, mut foreign) = (0_u64, 0_u64);
        let mut waiting = vec!["tile".to_owned()];
        while let Some(folder) = waiting.pop() {
            let names = match self.reader.list(&format!("{origin}/{folder}")) {
                Ok(names) => names.unwrap_or_default(),
                Err(error) => {
                    self.unreadable(&error);
                    continue;
                }
            };
            // Tile paths are at most 11 folders deep; below that there is nothing of ours.
            let deep = folder.split('/').count() > 12;
            for listed in names {
                let path = format!("{folder}/{}", listed.name);
                if listed.kind == store::Kind::Folder && !deep {
                    waiting.push(path);
                    continue;
                }
                let coord = TileCoord::parse(&path).or_else(|_| TileCoord::parse_entries(&path));
                match coord {
                    Ok(coord) if listed.kind == store::Kind::File => {
                        let there = TileCoord::in_tree(coord.level, coord.index, end);
                        let within = there.is_some_and(|there| coord.width <= there.width);
                        beyond += u64::from(!within);
                    }
                    _ => foreign += 1,
                }
            }
        }
        let mut note = |count: u64, text: &str| {
            if count > 0 {
                self.result.notes.push(format!("{count} {text}"));
            }
        };
        note(beyond, "tile files beyond the newest checkpoint, not checked (a publication under way or interrupted)");
        note(foreign, "files in tile/ that are no tiles; ignored");
    }
}
