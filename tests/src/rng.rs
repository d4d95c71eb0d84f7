//! Random numbers with a seed that is printed, so that a failure can be replayed with `HOLDFAST_TEST_SEED`.

/// xorshift64*: small, quick, and the same everywhere.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// From `HOLDFAST_TEST_SEED`, or from the system; printed either way.
    #[must_use]
    pub fn announced(test: &str) -> Self {
        let seed = Self::chosen_seed();
        println!("{test}: HOLDFAST_TEST_SEED={seed}");
        Self::seeded(seed)
    }
    /// `HOLDFAST_TEST_SEED`, or one from the system, for a test that announces what it makes of it.
    ///
    /// # Panics
    /// When the variable is no number, or the system has no random bytes.
    #[must_use]
    pub fn chosen_seed() -> u64 {
        match std::env::var("HOLDFAST_TEST_SEED") {
            Ok(text) => text.parse().expect("HOLDFAST_TEST_SEED is a number"),
            Err(_) => {
                let mut bytes = [0; 8];
                getrandom::fill(&mut bytes).expect("the system has random bytes");
                u64::from_le_bytes(bytes)
            }
        }
    }
    /// From a seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        // Zero is xorshift's one fixed point.
        Self(seed ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }
    /// Any number.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A number below `limit`.
    ///
    /// # Panics
    /// When `limit` is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.word() % limit
    }
    /// A number below `limit`, as an index.
    ///
    /// # Panics
    /// When `limit` is 0.
    pub fn index(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).expect("a usize fits 64 bits");
        usize::try_from(self.below(limit)).expect("below a usize")
    }
    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    /// `len` random bytes.
    #[must_use]
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
    /// Random bytes into all of `out`.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
