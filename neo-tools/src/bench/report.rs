// SPDX-License-Identifier: GPL-2.0-or-later
//! Figures for people (a table) and for machines (JSON).

use std::fmt::Write as _;

use neo_common::config::BenchOptions;
use serde_json::{Value, json};

use super::cluster::Target;
use super::figures::{Better, NOTHING, Row, Sheet};
use super::machine::Machine;
use super::process;
use super::workloads::Scale;

/// All that is to be told.
pub struct Report<'a> {
    /// What was asked.
    pub options: &'a BenchOptions,
    /// Where.
    pub machine: Machine,
    /// The columns.
    pub targets: &'a [Target],
    /// How much.
    pub scale: Scale,
    /// The rows.
    pub sheet: Sheet,
}

impl Report<'_> {
    /// A few lines about the machine, then an aligned table.
    pub fn table(&self) -> String {
        let mut lines = vec![self.first_line()];
        let mut header = vec![String::new(), String::new()];
        for (number, target) in (1..).zip(self.targets) {
            lines.push(format!("({number}) {}", target.label));
            header.push(format!("({number})"));
            if number > 1 {
                header.push(format!("({number}):(1)"));
            }
        }
        lines.push(String::new());
        let mut cells = vec![header];
        let mut group = "";
        for row in self.sheet.rows.iter().chain(&self.memory()) {
            if !self.is_worth_a_line(row) {
                continue;
            }
            if row.group != group {
                group = &row.group;
                cells.push(vec![group.to_owned()]);
            }
            cells.push(self.line(row));
        }
        lines.join("\n") + "\n" + &align(&cells)
    }

    fn first_line(&self) -> String {
        let Machine { date, processor, cores, system, disk } = &self.machine;
        let mut line = format!("{date}, {processor}, {cores} cores, {system}");
        if let Some(disk) = disk {
            let (kind, ms) = (&disk.file_system, disk.sync_us / 1e3);
            write!(line, ", {kind}, fdatasync {ms:.2} ms").expect("writing to a string");
        }
        let rounds = match self.scale.rounds {
            1 => "1 round".into(),
            rounds => format!("median of {rounds} rounds"),
        };
        let options = self.options;
        match &options.running {
            Some(running) => write!(line, "\ncluster {}, {rounds}", running.name),
            None => {
                let (storages, partitions) = (options.storages, options.partitions);
                let plural = if storages == 1 { "" } else { "s" };
                write!(line, "\n{storages} storage{plural}, {partitions} partitions, {rounds}")
            }
        }
        .expect("writing to a string");
        line
    }

    fn is_worth_a_line(&self, row: &Row) -> bool {
        let mut medians = (0..self.targets.len()).filter_map(|column| row.median(column));
        !row.name.starts_with("CPU") || medians.any(|value| value >= NOTHING)
    }

    fn line(&self, row: &Row) -> Vec<String> {
        let text = |value: Option<f64>| value.map_or_else(|| "-".into(), number);
        let mut cells = vec![format!("  {}", row.name), row.unit.to_owned()];
        for column in 0..self.targets.len() {
            cells.push(text(row.median(column)));
            if column > 0 {
                let digits = |ratio| usize::from(ratio < 100.);
                let ratio = row.ratio(column).map(|ratio| format!("{ratio:.*}x", digits(ratio)));
                cells.push(ratio.unwrap_or_else(|| "-".into()));
            }
        }
        cells
    }

    /// Memory of each kind of node: of the biggest, if there are several.
    fn memory(&self) -> Vec<Row> {
        let mut sheet = Sheet::new(self.targets.len());
        for (column, target) in self.targets.iter().enumerate() {
            let mut column = sheet.column(column);
            let mut names: Vec<&str> = target.nodes.iter().map(|node| node.name.as_str()).collect();
            names.dedup();
            for name in names {
                let nodes = target.nodes.iter().filter(|node| node.name == name);
                let memory: Vec<_> =
                    nodes.filter_map(|node| process::memory(node.pid).ok()).collect();
                let mut add = |what: &str, bytes: Option<u64>| {
                    if let Some(bytes) = bytes {
                        let name = format!("{name}, {what}");
                        column.add("memory", &name, "MB", Better::Lower, bytes as f64 / 1e6);
                    }
                };
                add("peak", memory.iter().map(|memory| memory.peak).max());
                add("at the end, without files", memory.iter().map(|m| m.anonymous).max());
            }
        }
        sheet.rows
    }

    /// Everything, with the value of each round.
    pub fn json(&self) -> String {
        let Machine { date, processor, cores, system, disk } = &self.machine;
        let columns = 0..self.targets.len();
        let figure = |row: &Row| {
            json!({
                "group": row.group,
                "name": row.name,
                "unit": row.unit,
                "better": match row.better { Better::Higher => "higher", Better::Lower => "lower" },
                "values": row.values,
                "median": columns.clone().map(|column| row.median(column)).collect::<Vec<_>>(),
                "ratio": columns.clone().map(|column| row.ratio(column)).collect::<Vec<_>>(),
            })
        };
        let memory = self.memory();
        let figures: Vec<Value> = self.sheet.rows.iter().chain(&memory).map(figure).collect();
        let is_running = self.options.running.is_some();
        let report = json!({
            "date": date,
            "machine": {
                "processor": processor,
                "cores": cores,
                "system": system,
                "file_system": disk.as_ref().map(|disk| &disk.file_system),
                "fdatasync_us": disk.as_ref().map(|disk| disk.sync_us),
            },
            "clusters": self.targets.iter().map(|target| &target.label).collect::<Vec<_>>(),
            "storages": (!is_running).then_some(self.options.storages),
            "partitions": (!is_running).then_some(self.options.partitions),
            "rounds": self.scale.rounds,
            "quick": self.options.quick,
            "figures": figures,
        });
        format!("{report:#}")
    }
}

/// Three significant digits, or all of a bigger number.
fn number(value: f64) -> String {
    match value {
        _ if value >= 100. => format!("{value:.0}"),
        _ if value >= 10. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Columns of text: the first two to the left, numbers to the right. A line with one cell is a title.
fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = lines.iter().filter(|line| line.len() > 1).filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut out = String::new();
        if let [title] = &line[..] {
            out += title;
        } else {
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let pad = " ".repeat(width - cell.chars().count());
                match column {
                    0 | 1 => out += &format!("{cell}{pad}  "),
                    _ => out += &format!("{pad}{cell}  "),
                }
            }
        }
        text += out.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers end in the same column, whatever is written before; titles do not widen anything.
    #[test]
    fn alignment() {
        let lines = [
            vec!["", "", "(1)"],
            vec!["a very long title"],
            vec!["  p50", "µs", "7.00"],
            vec!["  rate", "1/s", "12345"],
        ];
        let lines = lines.map(|line| line.into_iter().map(Into::into).collect());
        let expected =
            "               (1)\na very long title\n  p50   µs    7.00\n  rate  1/s  12345\n";
        assert_eq!(align(&lines), expected);
    }

    /// As many digits as are worth anything.
    #[test]
    fn numbers() {
        let texts = [0.0, 0.123, 1.239, 45.67, 678.9, 123_456.7].map(number);
        assert_eq!(texts, ["0.00", "0.12", "1.24", "45.7", "679", "123457"]);
    }
}
