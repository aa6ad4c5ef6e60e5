// SPDX-License-Identifier: GPL-2.0-or-later
//! Which kinds of faults a seed has, and how often.

use std::time::Duration;

use neo_common::prng::Prng;

use super::kind::{Kind, Kinds};
use crate::disk::Pace;
use crate::network::Weather;

/// How many faults there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// None, on a quiet network.
    Off,
    /// Few kinds, with time to recover in between.
    Lite,
    /// Anything.
    Swarm,
}

/// What goes wrong, and how often.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// Kinds that happen again and again, with the mean time between two of them.
    pub kinds: Vec<(Kind, Duration)>,
    /// Conditions, and what the operator does at the end.
    pub conditions: Kinds,
    /// How long a process stays down, at most.
    pub down_max: Duration,
    /// The network.
    pub weather: Weather,
    /// The disks.
    pub pace: Pace,
    /// How wrong the speed of clocks is, in millionths.
    pub drift_ppm: i64,
}

impl Plan {
    /// Nothing goes wrong.
    pub const QUIET: Self = Self {
        kinds: Vec::new(),
        conditions: Kinds::NONE,
        down_max: Duration::ZERO,
        weather: Weather::FINE,
        pace: Pace::FINE,
        drift_ppm: 0,
    };

    /// Draws a plan, then removes what is not one of some kinds: a seed draws the same, whatever
    /// they are.
    pub fn draw(prng: &mut Prng, level: Level, kinds: Kinds) -> Self {
        let mut plan = match level {
            Level::Off => Self::QUIET,
            Level::Lite => Self::draw_lite(prng),
            // Including none.
            Level::Swarm if prng.one_in(12) => Self { weather: Weather::draw(prng), ..Self::QUIET },
            Level::Swarm => Self::draw_swarm(prng),
        };
        for (kind, one_in) in [(Kind::TweakAtEnd, 4), (Kind::Truncate, 6), (Kind::RestartAtEnd, 3)]
        {
            if prng.one_in(one_in) {
                plan.conditions = plan.conditions.with(kind);
            }
        }
        plan.restricted(kinds)
    }

    fn draw_lite(prng: &mut Prng) -> Self {
        let mut kinds: Vec<Kind> = Kind::repeated().collect();
        prng.shuffle(&mut kinds);
        kinds.truncate(1 + prng.below(2));
        let kinds = kinds.into_iter().map(|kind| (kind, Duration::from_secs(10))).collect();
        Self { kinds, down_max: Duration::from_secs(2), ..Self::QUIET }
    }

    fn draw_swarm(prng: &mut Prng) -> Self {
        let one_in = 2 + prng.below(9) as u64;
        let mut kinds = Vec::new();
        for kind in Kind::repeated() {
            if prng.one_in(one_in) {
                let ms = 200_u64 << prng.below(8);
                kinds.push((kind, Duration::from_millis(ms)));
            }
        }
        let min_us = 10 + prng.below(500) as u64;
        let pace = match prng.one_in(2) {
            true => Pace::FINE,
            false => Pace {
                min_us,
                max_us: min_us + prng.below(20_000) as u64,
                stall_one_in: if prng.one_in(2) { 0 } else { 5 + prng.below(200) as u64 },
                late_one_in: if prng.one_in(2) { 0 } else { 50 + prng.below(500) as u64 },
                ..Pace::FINE
            },
        };
        Self {
            kinds,
            conditions: Kinds::NONE,
            down_max: Duration::from_millis(10_u64 << prng.below(11)),
            weather: Weather::draw(prng),
            pace,
            drift_ppm: if prng.one_in(2) { 0 } else { prng.below(100_000) as i64 },
        }
    }

    fn restricted(mut self, kinds: Kinds) -> Self {
        self.kinds.retain(|(kind, _)| kinds.has(*kind));
        if !kinds.has(Kind::Weather) {
            self.weather = Weather::FINE;
        }
        if !kinds.has(Kind::SlowDisks) {
            self.pace = Pace::FINE;
        }
        if !kinds.has(Kind::Drift) {
            self.drift_ppm = 0;
        }
        for (kind, is_there) in [
            (Kind::Weather, self.weather != Weather::FINE),
            (Kind::SlowDisks, self.pace != Pace::FINE),
            (Kind::Drift, self.drift_ppm != 0),
        ] {
            if is_there {
                self.conditions = self.conditions.with(kind);
            }
        }
        self.conditions = self.conditions.and(kinds);
        self
    }

    /// All that it has.
    pub fn all_kinds(&self) -> Kinds {
        self.kinds.iter().fold(self.conditions, |kinds, (kind, _)| kinds.with(*kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a seed draws without some kinds is what it draws with them, but for these kinds.
    #[test]
    fn a_restriction_changes_nothing_else() {
        for seed in 0..200 {
            let draw = |kinds| Plan::draw(&mut Prng::new(seed), Level::Swarm, kinds);
            let all = draw(Kinds::ALL);
            for kind in all.all_kinds().iter() {
                let less = draw(Kinds::ALL.without(kind));
                assert_eq!(less.all_kinds(), all.all_kinds().without(kind));
                assert!(less.kinds.iter().all(|entry| all.kinds.contains(entry)));
            }
            let none = draw(Kinds::NONE);
            assert_eq!(Plan { down_max: all.down_max, ..Plan::QUIET }, none);
        }
    }

    /// Each kind is drawn by some seed.
    #[test]
    fn each_kind_is_drawn() {
        for level in [Level::Lite, Level::Swarm] {
            let draw = |seed| Plan::draw(&mut Prng::new(seed), level, Kinds::ALL).all_kinds();
            let drawn = (0..2000).map(draw).flat_map(Kinds::iter);
            let drawn = drawn.fold(Kinds::NONE, Kinds::with);
            let missing = Kind::ALL.iter().filter(|kind| !drawn.has(**kind));
            let missing: Vec<_> =
                missing.filter(|k| level == Level::Swarm || !k.is_condition()).collect();
            assert!(missing.is_empty(), "{missing:?}");
        }
    }
}
