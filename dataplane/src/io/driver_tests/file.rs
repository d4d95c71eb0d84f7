//! Files through the ring and inline.

use super::*;

#[test]
fn files_are_written_read_synced_punched_and_searched() {
    let mut driver = driver();
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let id = driver.add_file(file.try_clone().unwrap().into());
    let mut buf = driver.pool().alloc(8192).unwrap();
    buf.get_mut().unwrap().copy_from_slice(&pattern(8192, 3));
    driver.write(id, 1, 65536, buf.clone(), 0..8192);
    let (result, back) = file_result(&mut driver, 1);
    assert_eq!((result, back.is_some()), (Ok(8192), true));
    drop(back);
    driver.fdatasync(id, 2);
    assert_eq!(file_result(&mut driver, 2).0, Ok(0));

    let into = driver.pool().alloc(8192).unwrap();
    driver.read(id, 3, 65536 + 4096, into, 4096);
    let (result, read) = file_result(&mut driver, 3);
    assert_eq!(result, Ok(4096));
    assert_eq!(&read.unwrap().as_slice()[..4096], &buf.as_slice()[4096..]);
    let into = driver.pool().alloc(8192).unwrap();
    driver.read(id, 4, (1 << 20) - 100, into, 8192);
    assert_eq!(file_result(&mut driver, 4).0, Ok(100), "the end of the file");

    let (len, allocated) = driver.seek_extent(id, 0, 1 << 20).unwrap();
    assert_eq!((len, allocated), (65536, false));
    assert_eq!(driver.seek_extent(id, 65536, 1 << 20), Ok((8192, true)));
    assert_eq!(driver.seek_extent(id, 65536, 65536 + 100), Ok((100, true)));
    assert_eq!(driver.seek_extent(id, 65536 + 8192, 1 << 20), Ok(((1 << 20) - 65536 - 8192, false)));
    assert_eq!(driver.seek_extent(id, 5, 5), Ok((0, false)));

    driver.fallocate(id, 5, FallocateMode::PunchHole, 65536, 4096);
    assert_eq!(file_result(&mut driver, 5).0, Ok(0));
    assert_eq!(driver.seek_extent(id, 65536, 1 << 20), Ok((4096, false)));
    driver.fallocate(id, 6, FallocateMode::ZeroRange, 65536 + 4096, 4096);
    // Not every file system can; the caller then writes zeros.
    if file_result(&mut driver, 6).0 != Err(Errno::EOPNOTSUPP) {
        let into = driver.pool().alloc(4096).unwrap();
        driver.read(id, 7, 65536 + 4096, into, 4096);
        assert!(file_result(&mut driver, 7).1.unwrap().as_slice().iter().all(|&byte| byte == 0));
    }
    driver.begin_writeback(id, 8, 65536..65536 + 8192);
    assert_eq!(file_result(&mut driver, 8).0, Ok(0));
    driver.begin_writeback(id, 9, 0..u64::from(u32::MAX) + 1);
    assert_eq!(file_result(&mut driver, 9).0, Ok(0));
    driver.write_inline(id, 100, b"inline").unwrap();
    let mut out = [1; 6];
    if driver.read_cached(id, 100, &mut out).unwrap() {
        assert_eq!(&out, b"inline");
    }
    assert_eq!(driver.read_cached(id, (1 << 20) - 3, &mut out), Ok(false), "never short");
    assert_eq!(file.metadata().unwrap().len(), 1 << 20, "no size has changed");
}

#[test]
fn a_file_error_is_reported_with_its_buffer() {
    let mut driver = driver();
    let read_only = std::fs::File::open("/proc/self/exe").unwrap();
    let id = driver.add_file(read_only.into());
    let buf = driver.pool().alloc(4096).unwrap();
    driver.write(id, 1, 0, buf, 0..4096);
    let (result, buf) = file_result(&mut driver, 1);
    assert_eq!((result, buf.unwrap().len()), (Err(Errno::EBADF), 4096));
}

#[test]
#[should_panic(expected = "nothing is in flight")]
fn a_file_in_use_is_not_removed() {
    let mut driver = driver();
    let id = driver.add_file(tempfile::tempfile().unwrap().into());
    driver.fdatasync(id, 1);
    driver.remove_file(id);
}
