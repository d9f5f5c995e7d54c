//! The kernel's side of the limits.

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    Scope, path_beneath_rules,
};

use super::{Limits, paths};

/// The newest version of Landlock of which all is asked for. Of what an older kernel lacks, the rest holds.
const KNOWN: ABI = ABI::V9;
/// The one that limits signals and abstract Unix sockets.
const SCOPES: ABI = ABI::V6;

/// The kernel's version of Landlock; 0 where it has none.
pub(super) fn version() -> u32 {
    // It is told of a thread that is restricted; this one forgoes one right that it doesn't use.
    let forgo = || -> Result<_, RulesetError> {
        Ok(Ruleset::default().handle_access(AccessFs::MakeBlock)?.create()?.restrict_self()?.landlock)
    };
    let told = std::thread::Builder::new().spawn(forgo).ok().and_then(|thread| thread.join().ok()?.ok());
    match told {
        Some(LandlockStatus::Available { effective_abi, .. }) => effective_abi as u32,
        _ => 0,
    }
}

/// Restricts the calling thread, and what it starts from now on. Takes it the right to more rights, as by a setuid program.
pub(super) fn restrict_thread(limits: &Limits) -> io::Result<()> {
    restrict(limits).map_err(|error| io::Error::other(format!("the kernel refused its limits: {error}")))
}

fn restrict(limits: &Limits) -> Result<(), RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let run = read | AccessFs::Execute;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    // What a server writes is data: it is never run.
    let all: BitFlags<AccessFs> = AccessFs::from_all(KNOWN) & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(SCOPES))?
        .create()?
        .add_rules(path_beneath_rules(paths::PROGRAMS, run))?
        .add_rules(path_beneath_rules(paths::installation(&limits.bin_dir), run))?
        .add_rules(path_beneath_rules(paths::SETTINGS, read))?
        .add_rules(path_beneath_rules(paths::DEVICES, device))?
        .add_rules(path_beneath_rules(&limits.reads, read))?
        .add_rules(path_beneath_rules(&limits.writes, all))?
        .add_rules(limits.port.map(|port| Ok::<_, RulesetError>(NetPort::new(port, AccessNet::BindTcp))))?;
    ruleset.restrict_self().map(drop)
}
