// SPDX-License-Identifier: GPL-2.0-or-later
//! What was measured: a row per quantity, a column per cluster, a value per round.

use std::time::Duration;

/// Less than that, in whatever unit, is nothing.
pub const NOTHING: f64 = 0.05;

/// What is preferred.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Better {
    /// Rates.
    Higher,
    /// Times, sizes.
    Lower,
}

/// A quantity.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// What was done.
    pub group: String,
    /// What was measured.
    pub name: String,
    /// Unit of the values.
    pub unit: &'static str,
    /// What is preferred.
    pub better: Better,
    /// For each column, the value of each round.
    pub values: Vec<Vec<f64>>,
}

impl Row {
    /// The value to show for a column; `None` if it was not measured there.
    pub fn median(&self, column: usize) -> Option<f64> {
        let mut values = self.values[column].clone();
        values.sort_by(f64::total_cmp);
        let (len, half) = (values.len(), values.len() / 2);
        match len % 2 {
            _ if len == 0 => None,
            0 => Some((values[half - 1] + values[half]) / 2.),
            _ => Some(values[half]),
        }
    }

    /// How many times the first column is better than another one; `None` if it makes no sense.
    pub fn ratio(&self, column: usize) -> Option<f64> {
        let (first, other) = (self.median(0)?, self.median(column)?);
        if first.max(other) < NOTHING || first.min(other) < NOTHING / 10. {
            return None;
        }
        let (above, below) = match self.better {
            Better::Higher => (first, other),
            Better::Lower => (other, first),
        };
        Some(above / below)
    }
}

/// All figures.
#[derive(Clone, PartialEq, Debug)]
pub struct Sheet {
    /// In the order of their first value.
    pub rows: Vec<Row>,
    columns: usize,
}

impl Sheet {
    /// Without any row.
    pub const fn new(columns: usize) -> Self {
        Self { rows: Vec::new(), columns }
    }

    /// To add what was measured on a cluster.
    pub fn column(&mut self, column: usize) -> Column<'_> {
        Column { sheet: self, column }
    }
}

/// Where the values of one cluster go.
pub struct Column<'a> {
    sheet: &'a mut Sheet,
    column: usize,
}

impl Column<'_> {
    /// Adds the value of a round.
    pub fn add(&mut self, group: &str, name: &str, unit: &'static str, better: Better, value: f64) {
        let Self { sheet: Sheet { rows, columns }, column } = self;
        let known = rows.iter().position(|row| row.group == group && row.name == name);
        let index = known.unwrap_or_else(|| {
            let (group, name) = (group.to_owned(), name.to_owned());
            // Groups stay together: something may only be seen in a later round.
            let end = rows.iter().rposition(|row| row.group == group).map_or(rows.len(), |i| i + 1);
            rows.insert(end, Row { group, name, unit, better, values: vec![vec![]; *columns] });
            end
        });
        rows[index].values[*column].push(value);
    }
}

/// Durations of many operations.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// One more.
    pub fn push(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    /// Those of another thread too.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The duration that a proportion of the operations did not exceed, in microseconds.
    pub fn percentile(&mut self, percent: usize) -> f64 {
        if self.0.is_empty() {
            return 0.;
        }
        let index = (self.0.len() * percent).div_ceil(100).clamp(1, self.0.len()) - 1;
        let (_, value, _) = self.0.select_nth_unstable(index);
        value.as_secs_f64() * 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of rounds meet in rows; groups stay together.
    #[test]
    fn sheet() {
        let mut sheet = Sheet::new(2);
        for (column, group, value) in
            [(0, "a", 4.), (1, "a", 40.), (0, "b", 5.), (0, "a", 1.), (1, "a", 20.), (0, "a", 2.)]
        {
            sheet.column(column).add(group, "time", "s", Better::Lower, value);
        }
        sheet.column(0).add("a", "rate", "1/s", Better::Higher, 6.);
        let names: Vec<_> = sheet.rows.iter().map(|row| (&*row.group, &*row.name)).collect();
        assert_eq!(names, [("a", "time"), ("a", "rate"), ("b", "time")]);
        let row = &sheet.rows[0];
        assert_eq!((row.median(0), row.median(1), row.ratio(1)), (Some(2.), Some(30.), Some(15.)));
        assert_eq!((sheet.rows[2].median(1), sheet.rows[2].ratio(1)), (None, None));
        sheet.column(0).add("c", "CPU", "s", Better::Lower, 0.001);
        sheet.column(1).add("c", "CPU", "s", Better::Lower, 1.);
        assert_eq!(sheet.rows[3].ratio(1), None);
    }

    /// The nearest rank: a value that was really measured.
    #[test]
    fn percentiles() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile(50), 0.);
        for us in (1..=200).rev() {
            latencies.push(Duration::from_micros(us));
        }
        for (percent, us) in [(0, 1.), (1, 2.), (50, 100.), (99, 198.), (100, 200.)] {
            assert!((latencies.percentile(percent) - us).abs() < 1e-6, "{percent}");
        }
    }
}
