//! What Landlock doesn't limit, and a server doesn't need: a filter of system calls refuses it to a server and to all that it
//! starts.
//!
//! - **Others' files** of the same user: their modes, owners, times and attributes. Watches, which tell names. Setuid programs.
//! - **Others' processes** of the same user: their limits, priorities and processors.
//! - **Sockets** other than TCP and UDP. MPTCP isn't covered by Landlock's rules for ports. Unix sockets by path aren't covered before
//!   Landlock 9, and services such as the user's systemd accept clients by their user id alone.
//! - **What is the whole machine's**: message queues and semaphores, keyrings, namespaces and mounts. io_uring, which does all of that by
//!   itself.
//!
//! System V shared memory stays, since PostgreSQL guards a data directory by it.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition as Condition,
    SeccompFilter, SeccompRule, apply_filter,
};

/// Bit that marks a system call of the ABI x32, on the processors that have it.
const X32: i64 = 0x4000_0000;

/// Refused whatever their arguments are.
const ALWAYS: &[i64] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_mknodat,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_sched_setattr,
    libc::SYS_ioprio_set,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    FCHMODAT2,
    OPEN_TREE,
    MOVE_MOUNT,
    FSOPEN,
    FSCONFIG,
    FSMOUNT,
    MOUNT_SETATTR,
];

/// The older forms of these, which newer processors don't have.
#[cfg(target_arch = "x86_64")]
const ALWAYS_OLDER: &[i64] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_mknod,
    libc::SYS_inotify_init,
];
#[cfg(not(target_arch = "x86_64"))]
const ALWAYS_OLDER: &[i64] = &[];

// The same numbers on all of these processors.
const OPEN_TREE: i64 = 428;
const MOVE_MOUNT: i64 = 429;
const FSOPEN: i64 = 430;
const FSCONFIG: i64 = 431;
const FSMOUNT: i64 = 432;
const MOUNT_SETATTR: i64 = 442;
const FCHMODAT2: i64 = 452;

/// Those that name a process: only the caller's own, by 0.
const OF_PROCESS: &[i64] =
    &[libc::SYS_prlimit64, libc::SYS_sched_setparam, libc::SYS_sched_setscheduler, libc::SYS_sched_setaffinity];

/// What a new process may not have of its own (`CLONE_NEW…`).
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

const SETUID: u64 = 0o4000;
const SETGID: u64 = 0o2000;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Refuses these to the calling thread and what it starts from now on.
pub(super) fn refuse(unix_sockets: bool) -> io::Result<()> {
    let refused = |error: &dyn std::fmt::Display| io::Error::other(format!("the kernel refused its limits: {error}"));
    let filters = [
        (sockets(unix_sockets), libc::EAFNOSUPPORT),
        // By this answer programs take the older calls, whose arguments can be looked at.
        (Ok([libc::SYS_clone3, libc::SYS_openat2].map(|call| (call, Vec::new())).into()), libc::ENOSYS),
        (others(), libc::EPERM),
    ];
    for (rules, errno) in filters {
        let filter = rules.and_then(|rules| filter(rules, errno)).map_err(|error| refused(&error))?;
        apply_filter(&filter).map_err(|error| refused(&error))?;
    }
    Ok(())
}

fn condition(argument: u8, is: Is, value: u64) -> Result<Condition, BackendError> {
    Condition::new(argument, Length::Dword, is, value)
}

fn rule<const N: usize>(conditions: [Result<Condition, BackendError>; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
}

/// A value of the C library's as an argument of a system call.
fn value(number: i32) -> u64 {
    u64::from(number.unsigned_abs())
}

/// Only IP, of it only TCP and UDP, and the kernel's word on the network's interfaces.
fn sockets(unix_sockets: bool) -> Result<Rules, BackendError> {
    let is_ip = |family: i32| {
        rule([
            condition(0, Is::Eq, value(family)),
            condition(2, Is::Ne, 0),
            condition(2, Is::Ne, value(libc::IPPROTO_TCP)),
            condition(2, Is::Ne, value(libc::IPPROTO_UDP)),
        ])
    };
    let is_other = rule([
        condition(0, Is::Ne, value(libc::AF_INET)),
        condition(0, Is::Ne, value(libc::AF_INET6)),
        condition(0, Is::Ne, value(libc::AF_NETLINK)),
        // A family twice does no harm.
        condition(0, Is::Ne, value(if unix_sockets { libc::AF_UNIX } else { libc::AF_INET })),
    ]);
    let is_netlink = rule([condition(0, Is::Eq, value(libc::AF_NETLINK)), condition(2, Is::Ne, value(libc::NETLINK_ROUTE))]);
    Ok(BTreeMap::from([(libc::SYS_socket, vec![is_ip(libc::AF_INET)?, is_ip(libc::AF_INET6)?, is_other?, is_netlink?])]))
}

fn others() -> Result<Rules, BackendError> {
    let mut rules: Rules = ALWAYS.iter().chain(ALWAYS_OLDER).map(|call| (*call, Vec::new())).collect();
    for call in OF_PROCESS {
        rules.insert(*call, vec![rule([condition(0, Is::Ne, 0)])?]);
    }
    // Of a process, a group or a user: whose number comes second.
    rules.insert(libc::SYS_setpriority, vec![rule([condition(1, Is::Ne, 0)])?]);
    let has = |argument: u8, bit: u64| rule([condition(argument, Is::MaskedEq(bit), bit)]);
    let flags = (0..32).map(|bit| 1_u64 << bit).filter(|bit| value(NAMESPACES) & bit != 0);
    rules.insert(libc::SYS_clone, flags.map(|flag| has(0, flag)).collect::<Result<_, _>>()?);
    rules.insert(libc::SYS_openat, vec![has(3, SETUID)?, has(3, SETGID)?]);
    #[cfg(target_arch = "x86_64")]
    {
        rules.insert(libc::SYS_open, vec![has(2, SETUID)?, has(2, SETGID)?]);
        rules.insert(libc::SYS_creat, vec![has(1, SETUID)?, has(1, SETGID)?]);
    }
    Ok(rules)
}

fn filter(rules: Rules, errno: i32) -> Result<BpfProgram, BackendError> {
    let with_x32 = rules.into_iter().flat_map(|(call, rules)| [(call, rules.clone()), (call | X32, rules)]).collect();
    let architecture = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(with_x32, SeccompAction::Allow, refuse, architecture)?.try_into()
}
