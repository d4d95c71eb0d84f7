//! The wire header's codec: what each request and each reply costs before any byte of payload is touched.
#![forbid(unsafe_code)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast_benches::counts::counted::write_request;
use holdfast_dataplane::wire::{HEADER_BYTES, Header, Status};

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire_header");
    group.throughput(Throughput::Elements(1));
    let request = write_request();
    group.bench_function("encode_request", |b| b.iter(|| black_box(&request).encode()));
    group.bench_function("encode_answer", |b| b.iter(|| black_box(&request).answer(Status::Ok).encode()));

    let bytes = request.encode();
    assert_eq!(Header::decode(&bytes), Ok(Some(request)), "the benchmark measures the good path");
    group.bench_function("decode_request", |b| b.iter(|| Header::decode(black_box(&bytes))));
    group.bench_function("decode_too_short", |b| {
        b.iter(|| Header::decode(black_box(&bytes[..HEADER_BYTES - 1])))
    });

    // A damaged frame must not be a cheap way to keep a replica busy.
    let mut damaged = bytes;
    damaged[20] ^= 1;
    assert!(Header::decode(&damaged).is_err());
    group.bench_function("decode_damaged", |b| b.iter(|| Header::decode(black_box(&damaged))));
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
