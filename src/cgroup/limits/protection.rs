//! Memory that is kept for a cgroup: `memory.min` and `memory.low`.
//!
//! A cgroup keeps what it asks for only as far as all cgroups around it ask for as much (cgroup-v2.rst, "memory.min"). So what dewar
//! made itself passes on the sum of what is asked for in it, and what others made is looked at and named.

use super::super::dir::Dir;
use super::{Outcome, amount};

/// The two files of protection.
const FILES: [&str; 2] = ["memory.min", "memory.low"];

/// How often a sum is taken anew while others change what it is made of.
const PASSES: usize = 8;

/// How far up protection is looked for. No hierarchy in use is as deep.
const LEVELS_MAX: usize = 64;

/// Makes `chain`, cgroups of ours each in the one before, pass on what is asked for in the last of them.
///
/// Several launches may do this at a time: each has written its own wish before, so that the last to add up sees all.
pub(in crate::cgroup) fn pass_on(chain: &[&Dir]) {
    let Some(last) = chain.last() else { return };
    for file in FILES {
        for _ in 0..PASSES {
            let sum = amount(wishes(last, file));
            let stale =
                chain.iter().filter(|dir| dir.read_text(file).is_ok_and(|held| held != sum));
            // What could not be passed on is told where the protection is read back.
            if stale.filter(|dir| dir.write(file, &sum).is_ok()).count() == 0 {
                break;
            }
        }
    }
}

/// What the children of `dir` ask for, together. One that asks for all (`max`) makes it all.
fn wishes(dir: &Dir, file: &str) -> u64 {
    let children = dir.children().unwrap_or_default();
    let wish = |name: &String| {
        let text = dir.read_text(&format!("{name}/{file}")).ok()?;
        Some(text.parse().unwrap_or(u64::MAX))
    };
    children.iter().filter_map(wish).fold(0, u64::saturating_add)
}

/// What keeps `dir` from having the protection that it holds in `file`, of `bytes` that were asked for.
pub(super) fn hindered(dir: &Dir, file: &str, bytes: u64) -> Option<Outcome> {
    let own = dir.read_text(file).ok()?.parse().unwrap_or(u64::MAX);
    let around = (1..LEVELS_MAX).map_while(|up| {
        let text = dir.read_text(&("../".repeat(up) + file)).ok()?;
        Some((up, text.parse::<u64>().unwrap_or(u64::MAX)))
    });
    let (up, least) = around.min_by_key(|&(_, held)| held)?;
    if least >= own {
        return None;
    }
    let place = dir.path().ancestors().nth(up)?.join(file);
    Some(match least {
        0 => Outcome::Lacking {
            needs: format!("as much of it in {}", place.display()),
            why: "0 is there, and no more is passed on".to_owned(),
        },
        least => Outcome::Rounded {
            asked: amount(bytes),
            found: format!("{least} (by {})", place.display()),
        },
    })
}
