// SPDX-License-Identifier: GPL-2.0-or-later
//! The last lines about packets, kept in memory until somebody wants them. Upstream: lib/logger.py,
//! where all records are kept like that.

use std::collections::VecDeque;
use std::io::{self, Write};

/// Bytes of lines that are kept.
const BYTES_MAX: usize = 16 << 20;

/// What a line costs beside its text.
const LINE_BYTES: usize = 32;

/// The last lines, oldest first.
#[derive(Debug, Default)]
pub struct Recent {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Recent {
    /// One more line; the oldest ones are forgotten.
    pub fn push(&mut self, line: Vec<u8>) {
        self.bytes += line.len() + LINE_BYTES;
        self.lines.push_back(line.into_boxed_slice());
        while self.bytes > BYTES_MAX
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.len() + LINE_BYTES;
        }
    }

    /// Writes and forgets all of them.
    ///
    /// # Errors
    /// Those of the output.
    pub fn flush(&mut self, output: &mut impl Write) -> io::Result<()> {
        self.bytes = 0;
        // Whole lines at once, so that those of several processes do not mix.
        let mut batch = Vec::new();
        for line in std::mem::take(&mut self.lines) {
            batch.extend_from_slice(&line);
            if batch.len() >= 1 << 16 {
                output.write_all(&batch)?;
                batch.clear();
            }
        }
        if batch.is_empty() { Ok(()) } else { output.write_all(&batch) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last ones are kept, within the limit, and written once.
    #[test]
    fn bounded() {
        let mut recent = Recent::default();
        let line = |n: usize| format!("{n:0999}\n").into_bytes();
        for n in 0..20_000 {
            recent.push(line(n));
            assert!(recent.bytes <= BYTES_MAX);
        }
        let mut output = Vec::new();
        recent.flush(&mut output).unwrap();
        let count = BYTES_MAX / (1000 + LINE_BYTES);
        assert_eq!(output.len(), count * 1000);
        assert!(output.starts_with(&line(20_000 - count)) && output.ends_with(&line(19_999)));
        recent.flush(&mut output).unwrap();
        assert_eq!(output.len(), count * 1000);
        recent.push(vec![b'x'; BYTES_MAX + 1]);
        assert_eq!((recent.bytes, recent.lines.len()), (0, 0), "too big to be kept");
    }
}
