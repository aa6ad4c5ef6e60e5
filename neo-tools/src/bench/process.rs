// SPDX-License-Identifier: GPL-2.0-or-later
//! Processes of nodes: their life, CPU time and memory.
//!
//! Unsafe code, for what the standard library does not offer:
//! - a child asks the kernel to be killed when we end, however we end (`prctl`, between `fork` and
//!   `exec`, where it only calls functions that are safe in signal handlers and allocates nothing);
//! - the CPU clock of another process, to the nanosecond and with the threads that ended (`/proc`
//!   counts in hundredths of a second).

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Starts a program whose standard output and error go to a file, and whose life ends with ours.
///
/// To be called by the main thread: the kernel takes the end of the calling thread for ours.
///
/// # Errors
/// Those of the operating system.
pub fn spawn(program: &Path, args: &[String], output: File) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    // Ctrl-C on the terminal is for us, who then end the children.
    command.process_group(0);
    let parent = std::process::id();
    // SAFETY: see the module's documentation; `prctl` and `getppid` are safe between fork and exec.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // We may have ended before.
            if libc::getppid() as u32 != parent {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Whether we may do anything: some programs want to be told who to be then.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// CPU time of all threads of a process so far; 0 is this process.
///
/// # Errors
/// If there is no such process.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut clock = libc::CLOCK_PROCESS_CPUTIME_ID;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let no_process = || io::Error::new(io::ErrorKind::NotFound, format!("no process {pid}"));
    let id = libc::pid_t::try_from(pid).map_err(|_| no_process())?;
    if id != 0 {
        // SAFETY: it only writes the clock id.
        let error = unsafe { libc::clock_getcpuclockid(id, &raw mut clock) };
        if error != 0 {
            return Err(no_process());
        }
    }
    // SAFETY: it only writes the time.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(no_process());
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// The most that it ever had. Files that it maps count, although the system can take that back.
    pub peak: u64,
    /// What it has now, without files.
    pub anonymous: u64,
}

/// Memory of a process.
///
/// # Errors
/// If there is no such process.
pub fn memory(pid: u32) -> io::Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.map(|kilobytes| kilobytes << 10).ok_or(io::ErrorKind::NotFound)
    };
    Ok(Memory { peak: bytes("VmHWM")?, anonymous: bytes("RssAnon")? })
}

/// Name of the program of a process.
///
/// # Errors
/// If there is no such process.
pub fn name(pid: u32) -> io::Result<String> {
    Ok(std::fs::read_to_string(format!("/proc/{pid}/comm"))?.trim_end().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child that works has CPU time and memory, and none once it ended.
    #[test]
    fn child() {
        let output = tempfile::tempfile().unwrap();
        let args = ["-c".into(), "while :; do :; done".into()];
        let mut child = spawn(Path::new("/bin/sh"), &args, output).unwrap();
        while cpu_time(child.id()).unwrap() < Duration::from_millis(20) {
            std::thread::yield_now();
        }
        let memory_of_shell = memory(child.id()).unwrap();
        assert!(memory_of_shell.peak > 100 << 10);
        assert!((1..memory_of_shell.peak).contains(&memory_of_shell.anonymous));
        assert_eq!(name(child.id()).unwrap(), "sh");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(cpu_time(child.id()).is_err());
        assert!(memory(child.id()).is_err());
        assert!(cpu_time(0).unwrap() > Duration::ZERO);
    }
}
