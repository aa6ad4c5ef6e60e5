// SPDX-License-Identifier: GPL-2.0-or-later
//! `neolog`: the log files of nodes, merged by date. Upstream: scripts/neolog.py.
//!
//! Log files are text, see [`mod@line`]. Packets are written later than they happened, so lines are
//! sorted; with `-f`, those that appear between two looks at the files.

pub mod line;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use neo_common::config::LogViewOptions;
use neo_common::logging::local_time;

use line::{DATE_LEN, Line, printable};

/// A line longer than that is shown in pieces.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Shows the files as the options say.
///
/// # Errors
/// If a file cannot be read, or if nothing can be printed any more.
pub fn run(options: &LogViewOptions, output: &mut impl Write) -> io::Result<()> {
    let from = options.from.as_deref().map(from_date).transpose()?;
    let mut sources = Vec::new();
    for path in &options.files {
        sources.push(Source::open(path)?);
    }
    let mut view = View { options, from, names_files: sources.len() > 1, last_shown: false };
    loop {
        if options.follow {
            flush(&options.flush);
        }
        let mut entries = Vec::new();
        for (index, source) in sources.iter_mut().enumerate() {
            source.read(index, &mut entries, !options.follow)?;
        }
        // Stable: lines of the same date stay in the order of the files.
        entries.sort_by(|a, b| a.date.cmp(&b.date));
        for entry in &entries {
            view.show(&sources[entry.source].stem, &entry.text, output)?;
        }
        output.flush()?;
        if !options.follow {
            return Ok(());
        }
        thread::sleep(Duration::from_secs_f64(options.sleep_interval));
    }
}

/// Asks processes to write what they keep in memory.
fn flush(pids: &[i32]) {
    for pid in pids {
        // If it is gone, its file stays. (The crate that delivers signals can also send them, but
        // not to another process.)
        #[allow(unsafe_code)]
        // SAFETY: no memory is involved.
        let _ = unsafe { libc::kill(*pid, libc::SIGRTMIN()) };
    }
}

/// The beginning of a date from which lines are shown.
fn from_date(text: &str) -> io::Result<String> {
    if let Ok(seconds) = text.trim().parse::<f64>()
        && seconds.is_finite()
    {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = if seconds < 0.0 { now.as_secs_f64() + seconds } else { seconds };
        let t = local_time((seconds.clamp(0.0, 1e11) * 1e6) as u64);
        return Ok(format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:04}",
            t.year, t.month, t.day, t.hour, t.minute, t.second, t.decimillis
        ));
    }
    let text = text.trim().replace('T', " ");
    let model = "0000-00-00 00:00:00.0000";
    let is_date = text.len() >= "0000-00-00".len()
        && text.len() <= DATE_LEN
        && text.bytes().zip(model.bytes()).all(|(byte, model)| match model {
            b'0' => byte.is_ascii_digit(),
            _ => byte == model,
        });
    if is_date {
        return Ok(text);
    }
    let message =
        format!("argument --from: '{text}' is neither a number nor YYYY-MM-DD[ HH:MM:SS]");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

/// A line with what it is sorted by.
struct Entry {
    date: String,
    source: usize,
    text: String,
}

/// A file that may grow, or be replaced.
struct Source {
    /// `None`: standard input.
    path: Option<PathBuf>,
    stem: String,
    file: Option<File>,
    /// End of the file without its line end.
    rest: Vec<u8>,
    /// Date of the last line that has one.
    date: String,
}

impl Source {
    fn open(path: &Path) -> io::Result<Self> {
        let (path, stem, file) = if path == Path::new("-") {
            (None, String::new(), None)
        } else {
            let file = File::open(path).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            (Some(path.to_owned()), stem, Some(file))
        };
        Ok(Self { path, stem, file, rest: Vec::new(), date: String::new() })
    }

    /// Reads what is new. A line that is not whole is left for later, unless this is the `end`.
    fn read(&mut self, index: usize, entries: &mut Vec<Entry>, end: bool) -> io::Result<()> {
        let Some(path) = self.path.clone() else {
            io::stdin().read_to_end(&mut self.rest)?;
            self.split(index, entries, true);
            return Ok(());
        };
        self.read_file()?;
        self.split(index, entries, false);
        // After a rotation: the end of the old file was read just now, or belongs to it.
        let inode =
            |metadata: io::Result<std::fs::Metadata>| metadata.ok().map(|m| (m.dev(), m.ino()));
        let old = self.file.as_ref().and_then(|file| inode(file.metadata()));
        let new = inode(std::fs::metadata(&path));
        if new.is_some() && new != old {
            self.split(index, entries, true);
            self.file = File::open(&path).ok();
            self.read_file()?;
        }
        self.split(index, entries, end);
        Ok(())
    }

    fn read_file(&mut self) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.read_to_end(&mut self.rest).map(drop),
            None => Ok(()),
        }
    }

    /// Takes whole lines from what was read; also the last one if it is the `end`.
    fn split(&mut self, index: usize, entries: &mut Vec<Entry>, end: bool) {
        let mut start = 0;
        while let Some(length) = self.rest[start..].iter().position(|byte| *byte == b'\n') {
            self.line(index, entries, start..start + length);
            start += length + 1;
        }
        self.rest.drain(..start);
        if !self.rest.is_empty() && (end || self.rest.len() > LINE_BYTES_MAX) {
            self.line(index, entries, 0..self.rest.len());
            self.rest.clear();
        }
    }

    fn line(&mut self, index: usize, entries: &mut Vec<Entry>, range: std::ops::Range<usize>) {
        let text = String::from_utf8_lossy(&self.rest[range]).into_owned();
        if let Some(line) = Line::parse(&text) {
            line.date.clone_into(&mut self.date);
        }
        // What is not a line of ours stays below the last one.
        entries.push(Entry { date: self.date.clone(), source: index, text });
    }
}

/// What is to be shown.
struct View<'a> {
    options: &'a LogViewOptions,
    from: Option<String>,
    names_files: bool,
    /// Whether the last line was shown: what follows it belongs to it.
    last_shown: bool,
}

impl View<'_> {
    fn show(&mut self, stem: &str, text: &str, output: &mut impl Write) -> io::Result<()> {
        let Some(line) = Line::parse(text) else {
            return if self.last_shown { writeln!(output, "{}", printable(text)) } else { Ok(()) };
        };
        let node = line.node(if self.names_files { stem } else { "" });
        let wanted = &self.options.nodes;
        self.last_shown = self.from.as_deref().is_none_or(|from| line.date >= from)
            && (wanted.is_empty()
                || wanted.iter().any(|name| name == node || name == line.name || name == stem));
        if self.last_shown {
            writeln!(output, "{}", line.show(node, self.options.all))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(files: &[&Path]) -> LogViewOptions {
        LogViewOptions {
            all: false,
            follow: false,
            flush: Vec::new(),
            nodes: Vec::new(),
            sleep_interval: 1.0,
            from: None,
            files: files.iter().map(|path| path.to_path_buf()).collect(),
        }
    }

    fn shown(options: &LogViewOptions) -> Vec<String> {
        let mut output = Vec::new();
        run(options, &mut output).unwrap();
        let text = String::from_utf8(output).unwrap();
        // Without the part of the date that is always the same.
        text.lines().map(|line| line.strip_prefix("2026-11-21 ").unwrap_or(line).into()).collect()
    }

    /// Files are merged, nodes are told apart, what has no date stays where it is.
    #[test]
    fn merged() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("master.log"), dir.path().join("storage.log"));
        let line = |time: &str, level: &str, name: &str, text: &str| {
            format!("2026-11-21 {time}.0000 {level:<9} {name:<10} [{:>14}:  1] {text}\n", "module")
        };
        let packet = line("10:00:01", "PACKET", "NEO", "#0x0001 Ping > S1 | Ping");
        std::fs::write(
            &a,
            line("10:00:00", "INFO", "NEO", "one")
                + &line("10:00:04", "ERROR", "NEO", "four")
                + "thread panicked\nat once\n"
                + &packet,
        )
        .unwrap();
        std::fs::write(
            &b,
            "garbage\n".to_owned() + &line("10:00:02", "INFO", "S1", "two\x1b[2J") + "\u{fffd}end",
        )
        .unwrap();
        let all = shown(&options(&[&a, &b]));
        let expected = [
            "10:00:00.0000 INFO      master     one",
            "10:00:01.0000 PACKET    master     #0x0001 Ping > S1",
            "10:00:02.0000 INFO      S1         two\\u{1b}[2J",
            "\u{fffd}end",
            "10:00:04.0000 ERROR     master     four",
            "thread panicked",
            "at once",
        ];
        assert_eq!(all, expected);
        let with = |change: fn(&mut LogViewOptions)| {
            let mut options = options(&[&a, &b]);
            change(&mut options);
            shown(&options)
        };
        assert_eq!(with(|o| o.nodes = vec!["S1".into()]), expected[2..4]);
        assert_eq!(with(|o| o.nodes = vec!["storage".into()]), expected[2..4]);
        assert_eq!(with(|o| o.nodes = vec!["master".into(), "S1".into()]), expected);
        assert_eq!(with(|o| o.from = Some("2026-11-21 10:00:02".into())), expected[2..]);
        assert_eq!(with(|o| o.from = Some("2026-11-22".into())).len(), 0);
        assert_eq!(with(|o| o.from = Some("0".into())).len(), 7);
        assert_eq!(
            with(|o| o.all = true)[1],
            "10:00:01.0000 PACKET    master     #0x0001 Ping > S1 | Ping"
        );
        let only = shown(&options(&[&a]));
        assert_eq!(only[0], "10:00:00.0000 INFO      NEO        one");
        let mut wrong = options(&[&a]);
        for from in ["x", "2026-11", "2026-11-21x", "nan", "2026-11-21 10:00:00.00001"] {
            wrong.from = Some(from.into());
            assert!(run(&wrong, &mut Vec::new()).is_err(), "{from}");
        }
        assert!(run(&options(&[&dir.path().join("none")]), &mut Vec::new()).is_err());
    }
}
