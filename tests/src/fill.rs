//! Blocks whose content says which write they came from, and a client that remembers what was promised about them.

use std::io;

use crate::BLOCK;
use crate::block::BlockClient;
use crate::rng::Rng;

const LEN: usize = 4096;

/// The content of block `block` as written by write number `version`; version 0 is the zeros of a new volume.
#[must_use]
pub fn block(block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; LEN];
    }
    let mut content = Rng::seeded(block.wrapping_mul(0x1_0000_0001) ^ version.rotate_left(40)).bytes(LEN);
    content[..8].copy_from_slice(&block.to_le_bytes());
    content[8..16].copy_from_slice(&version.to_le_bytes());
    content
}

/// Which write this content came from.
///
/// # Errors
/// When it is torn, or belongs elsewhere: in words.
pub fn version_of(at: u64, content: &[u8]) -> Result<u64, String> {
    if content.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let word = |from: usize| {
        let bytes = content.get(from..from + 8).and_then(|b| b.try_into().ok()).unwrap_or_default();
        u64::from_le_bytes(bytes)
    };
    let (found_at, version) = (word(0), word(8));
    if found_at == at && content == block(at, version) {
        Ok(version)
    } else {
        Err(format!(
            "block {at} holds what was never written there (claims block {found_at}, write {version})"
        ))
    }
}

/// What a volume promised: per block the newest write sent, and the newest that a flush covered.
#[derive(Debug, Clone)]
pub struct Ledger {
    sent: Vec<u64>,
    acked: Vec<u64>,
    flushed: Vec<u64>,
    next: u64,
    /// Flushes that were acknowledged.
    pub flushes: u64,
}

impl Ledger {
    /// For the first `blocks` blocks of a new volume.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        Self { sent: vec![0; blocks], acked: vec![0; blocks], flushed: vec![0; blocks], next: 1, flushes: 0 }
    }

    /// Writes `count` random blocks, one after the other, then flushes.
    ///
    /// # Errors
    /// What the client met; what was sent until then counts as sent.
    pub fn round(&mut self, client: &mut BlockClient, rng: &mut Rng, count: usize) -> io::Result<()> {
        for _ in 0..count {
            let index = rng.index(self.sent.len());
            let at = u64::try_from(index).expect("a usize fits 64 bits");
            let version = self.next;
            self.next += 1;
            self.sent[index] = version;
            client.write(at * BLOCK, &block(at, version))?;
            self.acked[index] = version;
        }
        let covered = self.acked.clone();
        client.flush()?;
        self.flushed = covered;
        self.flushes += 1;
        Ok(())
    }

    /// Reads every block and holds it against what was promised: nothing flushed is missing, nothing is there that
    /// was never sent, and what was read once is read again. What is found is the base from then on.
    ///
    /// # Panics
    /// When a promise was broken, or a read fails.
    pub fn verify(&mut self, client: &mut BlockClient) {
        for index in 0..self.sent.len() {
            let at = u64::try_from(index).expect("a usize fits 64 bits");
            let read = |client: &mut BlockClient| {
                let content =
                    client.read(at * BLOCK, LEN).unwrap_or_else(|e| panic!("cannot read block {at}: {e}"));
                version_of(at, &content).unwrap_or_else(|e| panic!("{e}"))
            };
            let found = read(client);
            assert!(
                found >= self.flushed[index],
                "block {at}: write {} was acknowledged and flushed, but write {found} is there",
                self.flushed[index]
            );
            assert!(found <= self.sent[index], "block {at}: write {found} is newer than any sent");
            assert_eq!(read(client), found, "block {at}: read differently the second time");
            (self.sent[index], self.acked[index], self.flushed[index]) = (found, found, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_tells_its_block_and_write() {
        assert_eq!(version_of(7, &block(7, 3)), Ok(3));
        assert_eq!(version_of(7, &block(7, 0)), Ok(0));
        assert!(version_of(8, &block(7, 3)).is_err());
        let mut torn = block(7, 3);
        torn[2048..].copy_from_slice(&block(7, 4)[2048..]);
        assert!(version_of(7, &torn).is_err());
    }
}
