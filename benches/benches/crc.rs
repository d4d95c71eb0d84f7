//! CRC-32 over payloads: as the library computes it, and as a received frame is verified.
#![forbid(unsafe_code)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use holdfast_dataplane::wire::{Header, Kind};

/// A block, and the largest request that sequential clients usually send.
const SIZES_BYTES: [u32; 2] = [4 << 10, 128 << 10];
/// Larger than the last-level caches of common machines: walking through it gives cold payloads.
const COLD_BYTES: usize = 256 << 20;

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from((at * 31 + at / 4096) % 251).unwrap_or(0)).collect()
}

fn crc(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crc32");
    let cold = pattern(COLD_BYTES);
    for length in SIZES_BYTES {
        let bytes = usize::try_from(length).expect("sizes fit in memory");
        let payload = &cold[..bytes];
        group.throughput(Throughput::Bytes(u64::from(length)));
        group.bench_function(BenchmarkId::new("hot", length), |b| {
            b.iter(|| crc32fast::hash(black_box(payload)))
        });
        let mut chunks = cold.chunks_exact(bytes).cycle();
        group.bench_function(BenchmarkId::new("cold", length), |b| {
            b.iter(|| crc32fast::hash(black_box(chunks.next().unwrap_or(payload))));
        });
        let frame =
            Header { length, payload_crc: crc32fast::hash(payload), ..Header::request(Kind::Write, 1, 1) };
        assert_eq!(frame.verify(payload), Ok(()), "the benchmark measures the good path");
        group.bench_function(BenchmarkId::new("verify_frame", length), |b| {
            b.iter(|| black_box(&frame).verify(black_box(payload)));
        });
    }
    group.finish();
}

criterion_group!(benches, crc);
criterion_main!(benches);
