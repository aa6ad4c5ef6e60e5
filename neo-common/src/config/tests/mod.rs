// SPDX-License-Identifier: GPL-2.0-or-later
//! Each row of the tables, the rules that scripts rely on, and the traps of upstream.

mod executables;
mod files;
mod rules;

use super::environment::Fixed;
use super::*;

/// Splits a command line at spaces; `''` is an empty argument.
fn args(line: &str) -> Vec<String> {
    line.split_whitespace().map(|arg| arg.replace("''", "")).collect()
}

fn env(file: &str) -> Fixed {
    Fixed { file: Some(file.as_bytes().to_vec()), home: Some("/home/neo".into()) }
}

fn master(line: &str) -> MasterOptions {
    MasterOptions::parse(&args(line), &env("")).unwrap().options
}

fn storage(line: &str) -> StorageOptions {
    StorageOptions::parse(&args(line), &env("")).unwrap().options
}

/// Status and last line of the error of neomaster.
fn refused(line: &str) -> (u8, String) {
    failed(MasterOptions::parse(&args(line), &env("")))
}

fn failed<T: fmt::Debug>(result: Result<Loaded<T>, Exit>) -> (u8, String) {
    let exit = result.unwrap_err();
    assert_eq!(exit.stdout, "");
    (exit.status, exit.stderr.lines().last().unwrap_or_default().to_owned())
}

/// Nothing panics, whatever the arguments and the file: random pieces of what is meaningful.
#[test]
fn no_panic() {
    let pieces: &[&[u8]] = &[
        b"--",
        b"-",
        b"=",
        b"\n",
        b"\n\n",
        b" ",
        b"-p",
        b"-f\nx\n",
        b"--file=x\n",
        b"--par",
        b"12",
        b"-c\nc\n",
        b"[master]\n",
        b"[DEFAULT]\n",
        b"cluster: ",
        b"masters=",
        b"%(",
        b")s",
        b"%",
        b"%%",
        b"cluster",
        b"  x",
        b"[::1]:1",
        b";",
        b" ; ",
        b"#",
        b"\r",
        b"\xff",
        b"\xc3\xa9",
        b"~",
        b"/",
        b"-d\nx\n",
        b"-w\n-1\n",
        b"--monitor-email",
        b"1e999",
        b"nan",
        b"99999999999999999999",
        b"_",
    ];
    let mut prng = crate::prng::Prng::new(1);
    for _ in 0..20_000 {
        let mut data = vec![prng.below(6) as u8];
        for _ in 0..prng.below(20) {
            data.extend_from_slice(prng.choose(pieces).unwrap());
        }
        fuzz_one(&data);
    }
    fuzz_one(&[]);
    fuzz_one(&[0]);
}

/// Passwords do not show in logs.
#[test]
fn secrets() {
    let options = storage("-c c -d neo:secret@neo");
    assert_eq!(options.database.reveal(), "neo:secret@neo");
    assert!(!format!("{options:?}").contains("secret"));
    let auth = AdminOptions::parse(&args("-c c --smtp-auth neo:se:cret"), &env("")).unwrap();
    let auth = auth.options.smtp_auth.unwrap();
    assert_eq!((auth.user.as_str(), auth.password.reveal()), ("neo", "se:cret"));
    assert!(!format!("{auth:?}").contains("cret"));
    let refused = failed(AdminOptions::parse(&args("-c c --smtp-auth secret"), &env("")));
    assert_eq!(refused, (2, "neoadmin: error: argument --smtp-auth: not USER:PASS".into()));
}
