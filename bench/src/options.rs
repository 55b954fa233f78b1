//! The command line of the benchmark, and the sizes that follow from it.

use std::path::PathBuf;

/// Shown for `--help` and after a mistake.
pub const USAGE: &str = "\
usage: bench [--quick] [--only NAME]… [--events N] [--supa-audit FILE]

  --quick      a minute or two, with small sizes: shows that it works, not what it costs
  --only NAME  one of: tpcb, bulk, shapes, tenant, log, fleet; may be repeated
  --events N   the size that the log grows to (default 1000000; the goals speak of 10000000)
  --supa-audit FILE
               the SQL script of that extension, to be measured beside (tpcb, bulk, shapes); it needs uuid-ossp";

/// A group of measurements that belong to one table, and may be run alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// pgbench's TPC-B.
    Tpcb,
    /// Statements over many rows.
    Bulk,
    /// Wide rows, large values, many partitions.
    Shapes,
    /// Reading through the tenant's policy.
    Tenant,
    /// Integration, proofs, verification.
    Log,
    /// Mints and countersignatures.
    Fleet,
}

impl Group {
    /// In the order in which they run.
    pub const ALL: [Self; 6] = [Self::Tpcb, Self::Bulk, Self::Shapes, Self::Tenant, Self::Log, Self::Fleet];

    /// The name for `--only`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tpcb => "tpcb",
            Self::Bulk => "bulk",
            Self::Shapes => "shapes",
            Self::Tenant => "tenant",
            Self::Log => "log",
            Self::Fleet => "fleet",
        }
    }
}

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Small sizes.
    pub quick: bool,
    only: Vec<Group>,
    events: Option<u64>,
    /// supa_audit's SQL script.
    pub supa_audit: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments; None: help was asked for.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self { quick: false, only: Vec::new(), events: None, supa_audit: None };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--only" => {
                    let name = arguments.next().unwrap_or_default();
                    let group = Group::ALL.into_iter().find(|group| group.name() == name);
                    options.only.push(group.ok_or_else(|| format!("--only takes a name of the list, not \"{name}\""))?);
                }
                "--events" => {
                    let number = arguments.next().and_then(|text| text.replace([',', '_'], "").parse().ok());
                    let number = number.filter(|n| (10_000..=100_000_000).contains(n));
                    options.events = Some(number.ok_or("--events takes a number from 10000 to 100000000")?);
                }
                "--supa-audit" => {
                    let file = arguments.next().map(PathBuf::from).filter(|file| file.is_file());
                    options.supa_audit = Some(file.ok_or("--supa-audit takes the name of a file")?);
                }
                "-h" | "--help" => return Ok(None),
                _ => return Err(format!("unknown argument {argument}")),
            }
        }
        Ok(Some(options))
    }

    /// Whether a group is to be run.
    pub fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }

    /// The run whose results are kept in git: everything, at full size.
    pub fn is_complete(&self) -> bool {
        !self.quick && self.only.is_empty()
    }

    /// The size that the log grows to.
    pub fn events(&self) -> u64 {
        self.events.unwrap_or(self.pick(1_000_000, 200_000))
    }

    /// One of two sizes.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// How often each variant gets its turn.
    pub fn rounds(&self) -> usize {
        self.pick(5, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::{Group, Options};

    fn read(arguments: &str) -> Result<Option<Options>, String> {
        Options::read(arguments.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_is_asked_for() -> Result<(), String> {
        let all = read("")?.ok_or("help")?;
        assert!(all.is_complete() && Group::ALL.into_iter().all(|group| all.wants(group)));
        let some = read("--quick --only log --only bulk --events 10_000_000")?.ok_or("help")?;
        assert!(!some.is_complete() && some.wants(Group::Log) && some.wants(Group::Bulk) && !some.wants(Group::Tpcb));
        assert_eq!(some.events(), 10_000_000);
        assert!(read("--help")?.is_none());
        Ok(())
    }

    #[test]
    fn mistakes_are_named() {
        for (arguments, named) in [
            ("--only speed", "\"speed\""),
            ("--only", "--only"),
            ("--events 5", "--events"),
            ("--supa-audit", "--supa-audit"),
            ("--fast", "--fast"),
        ] {
            let problem = read(arguments).err().unwrap_or_default();
            assert!(problem.contains(named), "{arguments}: {problem}");
        }
    }
}
