//! What a process costs, from /proc (proc(5)).

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// Ticks of `utime` and `stime` a second: USER_HZ, 100 on every Linux architecture that tokio runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of a living process, with all its threads, even those that have ended. Exact to 10 ms.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("reading a process's times")?;
    // The name in brackets may contain anything.
    let (_, fields) = stat.rsplit_once(')').context("reading a process's times")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|ticks| ticks.parse::<f64>().ok()).context("reading a process's times");
    let (user, system) = (ticks()?, ticks()?);
    Ok(Duration::from_secs_f64((user + system) / TICKS_PER_SECOND))
}

/// Resident memory of a living process in MiB: now, and at its peak.
pub fn memory_mib(pid: u32) -> anyhow::Result<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading a process's memory")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    let both = field("VmRSS:").zip(field("VmHWM:")).context("reading a process's memory")?;
    Ok((both.0 / 1024.0, both.1 / 1024.0))
}

/// The average number of processes that wanted a core in the last minute.
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}
