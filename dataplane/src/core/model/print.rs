//! Fingerprints of states: 128 bits, so that two states which are not the same do not pass for one (with ten million
//! states the odds are one in 10^24).

use std::hash::{Hash, Hasher};

use holdfast_proto::record::VolumeStatus;

/// Two lanes of multiply-and-fold with different constants. Not for keys that somebody chooses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Print(u64, u64);

impl Print {
    pub(crate) fn new() -> Self {
        Self(0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344)
    }
    pub(crate) fn finish128(mut self) -> u128 {
        self.write_u64(0x9e37_79b9);
        u128::from(self.0) << 64 | u128::from(self.1)
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    let low = u64::try_from(wide & u128::from(u64::MAX)).unwrap_or_default();
    (wide >> 64) as u64 ^ low
}

impl Hasher for Print {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = fold(self.0 ^ word, 0xa076_1d64_78bd_642f).rotate_left(23).wrapping_add(word);
        self.1 = fold(self.1.wrapping_add(word), 0xe703_7ed1_a0b4_28db) ^ word.rotate_left(31);
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }
    fn write_u16(&mut self, n: u16) {
        self.write_u64(u64::from(n));
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

/// A record's status, without what no rule looks at.
pub(crate) fn status(status: &VolumeStatus, h: &mut impl Hasher) {
    (status.incarnation, status.lineage, status.generation, status.engine_uuid).hash(h);
    (status.view, status.round, status.configured, status.clean).hash(h);
}
