//! What the verifier found: false things, and things it could not check.

/// The most findings of one log that are kept; the rest is counted.
pub const MAX_FINDINGS: usize = 100;

/// One thing that is false.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file that is wrong, relative to the store.
    pub file: String,
    /// The entry (or, in a tile, the hash) of the log that is wrong, counted from 0.
    pub index: Option<u64>,
    /// The byte of the file at which it begins.
    pub offset: Option<u64>,
    /// What is wrong.
    pub message: String,
}

/// The findings about one log, bounded in number.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    list: Vec<Finding>,
    count: u64,
}

impl Findings {
    /// Adds one, unless the very same is there.
    pub fn add(&mut self, finding: Finding) {
        if self.list.contains(&finding) {
            return;
        }
        self.count += 1;
        if self.list.len() < MAX_FINDINGS {
            self.list.push(finding);
        }
    }

    /// Adds one about a file as a whole.
    pub fn file(&mut self, file: impl Into<String>, message: impl Into<String>) {
        self.add(Finding { file: file.into(), index: None, offset: None, message: message.into() });
    }

    /// The first [`MAX_FINDINGS`], in the order they were found.
    pub fn list(&self) -> &[Finding] {
        &self.list
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }
}
