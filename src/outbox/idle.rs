//! When empty lanes give way to new functions: the rules of every engine. Pure.
//!
//! Clients name functions and can invent any number of names. A lane is *proven* once Lambda has accepted an event for its
//! function.
//! Holds: an unproven lane gives way to a new function as soon as it is empty. No invented name replaces a proven function
//! while at most half of `functions_max` are proven.

use std::time::Duration;

use super::LaneId;
use crate::clock::UnixMillis;

/// A lane that has been empty for this long is retired. The function's next event brings it back.
const RETIRE_AFTER: Duration = Duration::from_secs(600);

/// The same for a proven lane, if there is room.
const RETIRE_PROVEN_AFTER: Duration = Duration::from_secs(7 * 86_400);

/// The most idle lanes that a search for one that may give way visits.
pub const LOOK_AT_MAX: usize = 64;

/// The order of idle lanes: proven or not, since when empty, number.
pub type Key = (bool, UnixMillis, LaneId);

/// Whether a lane gives way to a new function. Proven ones do only if there are too many of them.
pub fn may_go(is_proven: bool, proven: u64, functions_max: u64) -> bool {
    !is_proven || proven > functions_max / 2
}

/// How long a lane stays empty before it is retired.
pub fn retire_after(may_go: bool) -> Duration {
    if may_go { RETIRE_AFTER } else { RETIRE_PROVEN_AFTER }
}

/// Whether nearly as many functions are known as there may be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Crowd {
    is_near: bool,
}

impl Crowd {
    pub fn is_near(self) -> bool {
        self.is_near
    }

    /// Takes the number of lanes. Logs when it comes near the limit, and when it is far from it again.
    pub fn note(&mut self, lanes: usize, functions_max: u64) {
        let lanes = lanes as u64;
        if !self.is_near && lanes * 8 >= functions_max * 7 {
            self.is_near = true;
            tracing::warn!(
                functions = lanes,
                functions_max,
                "nearly as many functions are known as outbox.functions_max allows: until there are fewer, events of functions that \
                never took one and are held become dead letters after 10 minutes. docs/operations.md, \"Invented function names\", \
                says what to do"
            );
        } else if self.is_near && lanes * 4 < functions_max * 3 {
            self.is_near = false;
            tracing::info!(functions = lanes, functions_max, "there is room for more functions again");
        }
    }
}
