//! Makes a failing program small.
//!
//! Takes items out of lists, large pieces first, as long as the sides still differ. Promises that what it returns
//! differs. Stops after a number of runs, so that a difference is always reported.

use super::run::{Arena, Verdict};
use super::script::Program;
use crate::Result;

/// Runs at most.
const RUNS: usize = 4000;

/// The smallest program found that still differs, and how. `difference` is what is known of `program`.
pub fn shrink(arena: &mut Arena, program: Program, difference: String) -> Result<(Program, String)> {
    let mut best = (program, difference);
    let mut runs = 0;
    loop {
        let mut smaller = false;
        let mut list = 0;
        while list < best.0.lists().len() {
            let mut size = best.0.lists()[list].0;
            while size > 0 {
                let mut from = 0;
                while let Some(&(length, least)) = best.0.lists().get(list)
                    && from < length
                {
                    let count = size.min(length - from);
                    if length - count < least {
                        break;
                    }
                    if runs == RUNS {
                        return Ok(best);
                    }
                    runs += 1;
                    let candidate = best.0.without(list, from, count);
                    match arena.run(&candidate)? {
                        Verdict::Different(difference) => {
                            best = (candidate, difference);
                            smaller = true;
                        }
                        _ => from += count,
                    }
                }
                size /= 2;
            }
            list += 1;
        }
        for candidate in best.0.plainer() {
            runs += 1;
            if let Verdict::Different(difference) = arena.run(&candidate)? {
                best = (candidate, difference);
                smaller = true;
                break;
            }
        }
        if !smaller {
            return Ok(best);
        }
    }
}
