//! The source of all chance in a simulation: SplitMix64, one 64-bit word of state.
//!
//! From Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (OOPSLA 2014). Every
//! seed is a good one, and the same seed gives the same numbers everywhere and for ever, so that a
//! failure replays from the seed that it printed. Not for secrets.

/// A pseudorandom number generator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimRng {
    state: u64,
}

impl SimRng {
    /// The generator of that seed.
    pub const fn new(seed: u64) -> SimRng {
        SimRng { state: seed }
    }

    /// A generator of its own for the part called `tag`, so that parts do not disturb each other.
    pub const fn fork(&self, tag: u64) -> SimRng {
        let mut rng =
            SimRng::new(self.state ^ tag.wrapping_add(1).wrapping_mul(0xd134_2543_de82_ef95));
        let seed = rng.next_u64();
        SimRng::new(seed)
    }

    /// 64 random bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number from 0 to `bound` - 1; 0 if there is none.
    pub const fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product: a bias of at most bound / 2^64.
        ((self.next_u64() as u128 * bound as u128) >> 64) as u64
    }

    /// A number from 0 to `bound` - 1, for places in memory; 0 if there is none.
    pub const fn index(&mut self, bound: usize) -> usize {
        self.below(bound as u64) as usize
    }

    /// True half of the time.
    pub const fn coin(&mut self) -> bool {
        self.next_u64() >> 63 == 1
    }

    /// True `per_million` times in a million.
    pub const fn chance(&mut self, per_million: u32) -> bool {
        self.below(1_000_000) < per_million as u64
    }

    /// Fills `buf` with random bytes.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_sequence_comes_out() {
        // First outputs for seed 1234567 of the reference implementation (prng.di.unimi.it).
        let mut rng = SimRng::new(1_234_567);
        assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn numbers_stay_below_their_bound_and_reach_it() {
        let mut rng = SimRng::new(1);
        let mut seen = [false; 7];
        for _ in 0..1000 {
            seen[rng.index(7)] = true;
        }
        assert_eq!(seen, [true; 7]);
        assert_eq!(rng.below(0), 0);
        assert!(!rng.chance(0) && rng.chance(1_000_000));
        assert_ne!(rng.fork(1), rng.fork(2));
    }
}
