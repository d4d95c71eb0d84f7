//! The file system of [`super::disk`]: one flat directory, passed on to another.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::fcntl::{AT_FDCWD, FallocateFlags, fallocate, renameat2};
use nix::unistd::{Whence, lseek64};

use super::disk::Shared;
use super::proxy::late;

/// Names and attributes are asked for anew each time.
const TTL: Duration = Duration::ZERO;
const ROOT: u64 = 1;

#[derive(Debug)]
pub(super) struct Passthrough {
    backing: PathBuf,
    directory: File,
    shared: Arc<Shared>,
    /// Inodes are those of the backing files; this is how they are found again.
    names: Mutex<HashMap<u64, OsString>>,
    /// By inode: what is open there, which is enough to work on it, and how often.
    open: Mutex<HashMap<u64, (Arc<File>, u32)>>,
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_i32)
}

fn attr(inode: u64, found: &Metadata) -> FileAttr {
    let seconds = |s: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(s).unwrap_or(0));
    FileAttr {
        ino: INodeNo(inode),
        size: found.len(),
        blocks: found.blocks(),
        atime: seconds(found.atime()),
        mtime: seconds(found.mtime()),
        ctime: seconds(found.ctime()),
        crtime: UNIX_EPOCH,
        kind: if found.is_dir() { FileType::Directory } else { FileType::RegularFile },
        perm: u16::try_from(found.mode() & 0o7777).unwrap_or(0o600),
        nlink: u32::try_from(found.nlink()).unwrap_or(1),
        uid: found.uid(),
        gid: found.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Passthrough {
    pub(super) fn new(backing: PathBuf, shared: Arc<Shared>) -> io::Result<Self> {
        let directory = File::open(&backing)?;
        Ok(Self { backing, directory, shared, names: Mutex::default(), open: Mutex::default() })
    }

    fn found(&self, name: &OsStr) -> io::Result<FileAttr> {
        let found = std::fs::symlink_metadata(self.backing.join(name))?;
        self.names.lock().expect("no thread of a disk panics").insert(found.ino(), name.to_owned());
        Ok(attr(found.ino(), &found))
    }

    fn metadata(&self, inode: u64) -> io::Result<FileAttr> {
        if inode == ROOT {
            return Ok(attr(ROOT, &self.directory.metadata()?));
        }
        if let Ok(file) = self.file(inode) {
            return Ok(attr(inode, &file.metadata()?));
        }
        Ok(attr(inode, &std::fs::symlink_metadata(self.path(inode)?)?))
    }

    fn path(&self, inode: u64) -> io::Result<PathBuf> {
        let names = self.names.lock().expect("no thread of a disk panics");
        let name = names.get(&inode).ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ENOENT))?;
        Ok(self.backing.join(name))
    }

    fn file(&self, inode: u64) -> io::Result<Arc<File>> {
        let open = self.open.lock().expect("no thread of a disk panics");
        let (file, _) = open.get(&inode).ok_or_else(|| io::Error::from_raw_os_error(nix::libc::EBADF))?;
        Ok(Arc::clone(file))
    }

    fn opened(&self, inode: u64, file: File) {
        let mut open = self.open.lock().expect("no thread of a disk panics");
        open.entry(inode).or_insert_with(|| (Arc::new(file), 0)).1 += 1;
    }

    /// Whether an operation on this inode is to fail, and after how long it may go on.
    fn disturbed(&self, inode: u64, error: Option<i32>) -> io::Result<()> {
        let trouble = self.shared.trouble();
        if !trouble.slow.is_zero() {
            late(trouble.slow);
        }
        let names = self.names.lock().expect("no thread of a disk panics");
        // What a replica knows of itself is kept apart: a disk may lose a file's content and still keep the other's.
        let spared = names.get(&inode).is_some_and(|name| name.to_string_lossy().starts_with("meta"));
        match error {
            Some(error) if !spared => {
                self.shared.failed.fetch_add(1, Ordering::SeqCst);
                Err(io::Error::from_raw_os_error(error))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn keep(&self, inode: u64, file: &Arc<File>, offset: u64, len: u64) -> io::Result<()> {
        match self.shared.undo.lock().expect("no thread of a disk panics").as_mut() {
            Some(undo) => undo.keep(inode, file, offset, len),
            None => Ok(()),
        }
    }

    fn write_all(&self, inode: u64, offset: u64, data: &[u8]) -> io::Result<u32> {
        self.disturbed(inode, self.shared.trouble().write)?;
        let file = self.file(inode)?;
        let len = u32::try_from(data.len()).expect("requests are small");
        self.keep(inode, &file, offset, u64::from(len))?;
        file.write_all_at(data, offset)?;
        Ok(len)
    }

    fn read_some(&self, inode: u64, offset: u64, size: u32) -> io::Result<Vec<u8>> {
        self.disturbed(inode, self.shared.trouble().read)?;
        let file = self.file(inode)?;
        let mut data = vec![0; usize::try_from(size).expect("requests are small")];
        let mut filled = 0;
        while filled < data.len() {
            match file
                .read_at(&mut data[filled..], offset + u64::try_from(filled).expect("requests are small"))?
            {
                0 => break,
                n => filled += n,
            }
        }
        data.truncate(filled);
        Ok(data)
    }

    fn sync(&self, inode: u64, datasync: bool) -> io::Result<()> {
        self.disturbed(inode, self.shared.trouble().sync)?;
        let file = self.file(inode)?;
        // Before: a write that comes meanwhile is not covered.
        if let Some(undo) = self.shared.undo.lock().expect("no thread of a disk panics").as_mut() {
            undo.synced(inode);
        }
        if datasync { file.sync_data() } else { file.sync_all() }
    }

    fn allocate(&self, inode: u64, offset: u64, len: u64, mode: i32) -> io::Result<()> {
        self.disturbed(inode, self.shared.trouble().write)?;
        let file = self.file(inode)?;
        let flags = FallocateFlags::from_bits_truncate(mode);
        if flags.intersects(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_ZERO_RANGE) {
            self.keep(inode, &file, offset, len)?;
        }
        let signed = |n: u64| i64::try_from(n).map_err(io::Error::other);
        Ok(fallocate(&*file, flags, signed(offset)?, signed(len)?)?)
    }

    fn resize(&self, inode: u64, size: Option<u64>, mode: Option<u32>) -> io::Result<FileAttr> {
        let path = self.path(inode)?;
        if let Some(size) = size {
            OpenOptions::new().write(true).open(&path)?.set_len(size)?;
        }
        if let Some(mode) = mode {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode & 0o7777))?;
        }
        self.metadata(inode)
    }

    fn made(&self, name: &OsStr, mode: u32, flags: i32) -> io::Result<FileAttr> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .create_new(flags & nix::libc::O_EXCL != 0)
            .mode(mode)
            .open(self.backing.join(name))?;
        let found = self.found(name)?;
        self.opened(found.ino.0, file);
        Ok(found)
    }

    fn renamed(&self, from: &OsStr, to: &OsStr, flags: RenameFlags) -> io::Result<()> {
        let flags = nix::fcntl::RenameFlags::from_bits_truncate(flags.bits());
        renameat2(AT_FDCWD, &self.backing.join(from), AT_FDCWD, &self.backing.join(to), flags)?;
        // Whatever is there now is looked up again.
        for name in [from, to] {
            match self.found(name) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn entries(&self) -> io::Result<Vec<(u64, FileType, OsString)>> {
        let mut entries =
            vec![(ROOT, FileType::Directory, ".".into()), (ROOT, FileType::Directory, "..".into())];
        for entry in std::fs::read_dir(&self.backing)? {
            let entry = entry?;
            let found = self.found(&entry.file_name())?;
            entries.push((found.ino.0, found.kind, entry.file_name()));
        }
        Ok(entries)
    }
}

/// Answers with what succeeded, or with the error.
macro_rules! answer {
    ($reply:ident, $result:expr, $ok:expr) => {
        match $result {
            Ok(value) => $ok($reply, value),
            Err(error) => $reply.error(errno(&error)),
        }
    };
}

impl Filesystem for Passthrough {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(reply, self.found(name), |r: ReplyEntry, a| r.entry(&TTL, &a, Generation(0)));
    }
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.metadata(ino.0), |r: ReplyAttr, a| r.attr(&TTL, &a));
    }
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        answer!(reply, self.resize(ino.0, size, mode), |r: ReplyAttr, a| r.attr(&TTL, &a));
    }
    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, std::fs::remove_file(self.backing.join(name)), |r: ReplyEmpty, ()| r.ok());
    }
    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.renamed(name, newname, flags), |r: ReplyEmpty, ()| r.ok());
    }
    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let file = self.path(ino.0).and_then(|path| OpenOptions::new().read(true).write(true).open(path));
        answer!(reply, file, |r: ReplyOpen, file| {
            self.opened(ino.0, file);
            r.opened(FileHandle(ino.0), FopenFlags::empty());
        });
    }
    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        answer!(reply, self.made(name, mode, flags), |r: ReplyCreate, a: FileAttr| {
            r.created(&TTL, &a, Generation(0), FileHandle(a.ino.0), FopenFlags::empty());
        });
    }
    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(reply, self.read_some(ino.0, offset, size), |r: ReplyData, data: Vec<u8>| r.data(&data));
    }
    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        answer!(reply, self.write_all(ino.0, offset, data), |r: ReplyWrite, n| r.written(n));
    }
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let mut open = self.open.lock().expect("no thread of a disk panics");
        if let Some((_, count)) = open.get_mut(&ino.0) {
            *count -= 1;
            if *count == 0 {
                open.remove(&ino.0);
            }
        }
        reply.ok();
    }
    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        answer!(reply, self.sync(ino.0, datasync), |r: ReplyEmpty, ()| r.ok());
    }
    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.directory.sync_all(), |r: ReplyEmpty, ()| r.ok());
    }
    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        answer!(reply, self.entries(), |mut r: ReplyDirectory, entries: Vec<_>| {
            let skip = usize::try_from(offset).unwrap_or(usize::MAX);
            for (i, (ino, kind, name)) in entries.into_iter().enumerate().skip(skip) {
                if r.add(INodeNo(ino), u64::try_from(i).expect("few entries") + 1, kind, name) {
                    break;
                }
            }
            r.ok();
        });
    }
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match nix::sys::statvfs::fstatvfs(&self.directory) {
            Ok(s) => reply.statfs(
                s.blocks(),
                s.blocks_free(),
                s.blocks_available(),
                s.files(),
                s.files_free(),
                u32::try_from(s.block_size()).unwrap_or(4096),
                255,
                u32::try_from(s.fragment_size()).unwrap_or(4096),
            ),
            Err(e) => reply.error(errno(&e.into())),
        }
    }
    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.allocate(ino.0, offset, length, mode), |r: ReplyEmpty, ()| r.ok());
    }
    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let whence = if whence == nix::libc::SEEK_DATA { Whence::SeekData } else { Whence::SeekHole };
        let found = self.file(ino.0).and_then(|file| Ok(lseek64(&*file, offset, whence)?));
        answer!(reply, found, |r: ReplyLseek, at| r.offset(at));
    }
}
