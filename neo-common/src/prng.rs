// SPDX-License-Identifier: GPL-2.0-or-later
//! Seeded generator for cores: same seed, same choices. Not for secrets.
//!
//! SplitMix64 (Steele, Lea, Flood, 2014): one 64-bit state, passes BigCrush, any seed is good.

/// Deterministic generator.
#[derive(Clone, Debug)]
pub struct Prng(u64);

impl Prng {
    /// From any seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }
    /// Next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in `0..bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }
    /// True once out of `n` on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n as usize) == 0
    }
    /// An element of a non-empty slice.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }
    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
    /// A generator with an independent sequence.
    pub fn fork(&mut self) -> Self {
        Self(self.next_u64())
    }
}
