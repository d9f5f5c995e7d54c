//! Unix sockets by path, which Landlock limits from its version 9 on only. One that lets in whoever runs as a certain user,
//! such as that of a session's systemd, would be a way out of everything else.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter,
};

/// Bit that marks a system call of the ABI x32, on the processors that have it.
const X32: i64 = 0x4000_0000;

/// Refuses Unix sockets to the calling thread and what it starts from now on, as a system without them does. Connected pairs
/// stay possible. So io_uring, which makes sockets by itself, is refused too.
pub(super) fn refuse_unix() -> io::Result<()> {
    let refused = |error: &dyn std::fmt::Display| io::Error::other(format!("the kernel refused its limits: {error}"));
    let filters = [
        filter(&[libc::SYS_socket], true, libc::EAFNOSUPPORT).map_err(|error| refused(&error))?,
        filter(&[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register], false, libc::EPERM)
            .map_err(|error| refused(&error))?,
    ];
    for filter in filters {
        apply_filter(&filter).map_err(|error| refused(&error))?;
    }
    Ok(())
}

/// A filter that answers these system calls with that error, only those for a Unix socket if `unix`.
fn filter(calls: &[i64], unix: bool, error: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let is_unix = || {
        let family = u64::from(libc::AF_UNIX.unsigned_abs());
        SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family)?])
    };
    let mut rules = BTreeMap::new();
    for call in calls {
        for number in [*call, *call | X32] {
            rules.insert(number, if unix { vec![is_unix()?] } else { Vec::new() });
        }
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(error.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?.try_into()
}
