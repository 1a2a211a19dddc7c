//! A model of a disk that promises only what POSIX does: what it may contain after a power cut at a given moment.
//!
//! Promised are the content and size of a file at its last fsync or fdatasync, and the entries of a directory at its
//! last fsync. Everything since may be there or not, in any combination, within these bounds: A page (4096 bytes) is as
//! it was at one moment, in whole sectors (512 bytes), some of which may be from an earlier moment. The size of a file
//! is one that it had since. Bytes within it that were not written are zero. A rename is there or is not.
//! `sync_file_range` promises nothing. The model assumes that a sector is atomic, that synced bytes do not rot, and
//! that the disk obeys flushes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::recording::{Op, Step};

const PAGE: usize = 4096;
const SECTOR: usize = 512;
const SECTORS: usize = PAGE / SECTOR;

type Id = usize;

/// Which of the legal images to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Everything that was not synced is lost.
    Drop,
    /// Nothing is lost, as after a kill.
    Keep,
    /// Directory entries are there, the contents of their files are not.
    Bare,
    /// Each page is from a random moment, and each entry is there or not.
    Random,
    /// Only the later half of what was written is there.
    Late,
    /// The sizes are there, some of the pages are not.
    Hole,
    /// Some sectors of each page are older than the others.
    Torn,
}

impl Variant {
    pub const ALL: [Self; 7] = [Self::Drop, Self::Keep, Self::Bare, Self::Random, Self::Late, Self::Hole, Self::Torn];
}

#[derive(Debug, Clone)]
enum Node {
    File { durable: Vec<u8>, pending: Vec<Change> },
    Dir { durable: BTreeMap<String, Id>, now: BTreeMap<String, Id>, pending: Vec<Entry> },
}

#[derive(Debug, Clone)]
enum Change {
    Write { at: usize, data: Bytes },
    Truncate { length: usize },
}

#[derive(Debug, Clone)]
enum Entry {
    Add(String, Id),
    Remove(String),
    Rename(String, String, Id),
}

/// The disk at one moment of a recording.
#[derive(Debug, Clone)]
pub struct Disk {
    nodes: Vec<Node>,
    by_inode: BTreeMap<u64, Id>,
}

const ROOT: Id = 0;

impl Disk {
    /// A disk that durably contains everything in `dir`.
    pub fn of(dir: &Path) -> Self {
        let mut disk = Self { nodes: Vec::new(), by_inode: BTreeMap::new() };
        disk.load(dir);
        disk
    }

    fn load(&mut self, dir: &Path) -> Id {
        let id = self.add(inode(dir), new_dir());
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let child = if path.is_dir() {
                self.load(&path)
            } else {
                self.add(inode(&path), Node::File { durable: fs::read(&path).unwrap(), pending: Vec::new() })
            };
            entries.insert(entry.file_name().into_string().unwrap(), child);
        }
        self.nodes[id] = Node::Dir { durable: entries.clone(), now: entries, pending: Vec::new() };
        id
    }

    fn add(&mut self, inode: u64, node: Node) -> Id {
        self.nodes.push(node);
        // The number of an inode may be used again once its file is gone.
        self.by_inode.insert(inode, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    pub fn apply(&mut self, step: &Step) {
        match &step.op {
            Op::Create { inode, path } => {
                self.enter(*inode, path, Node::File { durable: Vec::new(), pending: Vec::new() })
            }
            Op::Mkdir { inode, path } => self.enter(*inode, path, new_dir()),
            Op::Write { inode, at, data } => {
                self.change(*inode, Change::Write { at: usize::try_from(*at).unwrap(), data: data.clone() });
            }
            Op::Truncate { inode, length } => {
                self.change(*inode, Change::Truncate { length: usize::try_from(*length).unwrap() });
            }
            Op::Sync { inode, .. } => self.sync(*inode),
            Op::Rename { from, to } => self.rename(from, to),
            Op::Unlink { path } | Op::Rmdir { path } => {
                let (parent, name) = self.parent(path);
                self.edit(parent, Entry::Remove(name));
            }
            Op::Mark(_) => {}
        }
    }

    fn enter(&mut self, inode: u64, path: &Path, node: Node) {
        let id = self.add(inode, node);
        if path.as_os_str().is_empty() {
            panic!("the state directory must be there before the recording begins");
        }
        let (parent, name) = self.parent(path);
        self.edit(parent, Entry::Add(name, id));
    }

    fn change(&mut self, inode: u64, change: Change) {
        let id = self.by_inode[&inode];
        let Node::File { pending, .. } = &mut self.nodes[id] else { panic!("a write to a directory") };
        pending.push(change);
    }

    fn sync(&mut self, inode: u64) {
        let id = self.by_inode[&inode];
        match &mut self.nodes[id] {
            Node::File { durable, pending } => {
                pending.drain(..).for_each(|change| change.apply(durable));
            }
            Node::Dir { durable, now, pending } => {
                pending.clear();
                durable.clone_from(now);
            }
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let (parent, old) = self.parent(from);
        let (to_parent, new) = self.parent(to);
        assert_eq!(parent, to_parent, "a rename between directories is not modelled");
        let Node::Dir { now, .. } = &self.nodes[parent] else { panic!("a rename in a file") };
        let id = now[&old];
        self.edit(parent, Entry::Rename(old, new, id));
    }

    fn edit(&mut self, dir: Id, entry: Entry) {
        let Node::Dir { now, pending, .. } = &mut self.nodes[dir] else { panic!("an entry in a file") };
        entry.apply(now);
        pending.push(entry);
    }

    fn parent(&self, path: &Path) -> (Id, String) {
        let mut dir = ROOT;
        for name in path.parent().into_iter().flat_map(Path::iter) {
            let Node::Dir { now, .. } = &self.nodes[dir] else { panic!("{} in a file", path.display()) };
            dir = now[name.to_str().unwrap()];
        }
        (dir, path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    /// Makes one image that the disk may have after a power cut now, in the new directory `at`.
    pub fn image(&self, at: &Path, variant: Variant, rng: &mut fastrand::Rng) {
        self.write(ROOT, at.to_owned(), variant, rng);
    }

    fn write(&self, id: Id, at: PathBuf, variant: Variant, rng: &mut fastrand::Rng) {
        match &self.nodes[id] {
            Node::File { durable, pending } => fs::write(at, content(durable, pending, variant, rng)).unwrap(),
            Node::Dir { durable, pending, .. } => {
                fs::create_dir(&at).unwrap();
                let mut entries = durable.clone();
                for entry in pending {
                    let there = match variant {
                        Variant::Drop => false,
                        Variant::Keep | Variant::Bare | Variant::Late | Variant::Hole => true,
                        Variant::Random | Variant::Torn => rng.bool(),
                    };
                    if there {
                        entry.apply(&mut entries);
                    }
                }
                for (name, child) in entries {
                    self.write(child, at.join(name), variant, rng);
                }
            }
        }
    }
}

fn new_dir() -> Node {
    Node::Dir { durable: BTreeMap::new(), now: BTreeMap::new(), pending: Vec::new() }
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap())
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, data } => {
                let end = at + data.len();
                content.resize(content.len().max(end), 0);
                content[*at..end].copy_from_slice(data);
            }
            Self::Truncate { length } => content.resize(*length, 0),
        }
    }

    fn pages(&self) -> std::ops::Range<usize> {
        match self {
            Self::Write { at, data } => at / PAGE..(at + data.len()).div_ceil(PAGE),
            Self::Truncate { .. } => 0..0,
        }
    }
}

impl Entry {
    fn apply(&self, entries: &mut BTreeMap<String, Id>) {
        match self {
            Self::Add(name, id) => drop(entries.insert(name.clone(), *id)),
            Self::Remove(name) => drop(entries.remove(name)),
            Self::Rename(old, new, id) => {
                entries.remove(old);
                entries.insert(new.clone(), *id);
            }
        }
    }
}

/// One of the contents that a file may have.
fn content(durable: &[u8], pending: &[Change], variant: Variant, rng: &mut fastrand::Rng) -> Vec<u8> {
    let count = pending.len();
    let version = |n: usize| {
        let mut content = durable.to_vec();
        pending[..n].iter().for_each(|change| change.apply(&mut content));
        content
    };
    match variant {
        Variant::Drop | Variant::Bare => return durable.to_vec(),
        Variant::Keep => return version(count),
        Variant::Random | Variant::Late | Variant::Hole | Variant::Torn => {}
    }
    if count == 0 {
        return durable.to_vec();
    }
    // The file after its first n changes, for each n that is needed.
    let mut versions: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    let mut image = durable.to_vec();
    let size = version(if variant == Variant::Random { rng.usize(..=count) } else { count }).len();
    image.resize(size, 0);
    let mut touched: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (n, change) in pending.iter().enumerate() {
        change.pages().for_each(|page| touched.entry(page).or_default().push(n + 1));
    }
    for (page, moments) in touched {
        let last = moments[moments.len() - 1];
        let earlier =
            |rng: &mut fastrand::Rng| if moments.len() > 1 { moments[rng.usize(..moments.len() - 1)] } else { 0 };
        let mut sectors = [count; SECTORS];
        match variant {
            Variant::Random => sectors.fill(if rng.bool() { earlier(rng) } else { count }),
            Variant::Late => sectors.fill(if last > count / 2 { count } else { 0 }),
            Variant::Hole => sectors.fill(if rng.bool() { 0 } else { count }),
            Variant::Torn | Variant::Drop | Variant::Keep | Variant::Bare => {
                let old = earlier(rng);
                sectors.iter_mut().filter(|_| rng.u8(..4) == 0).for_each(|sector| *sector = old);
            }
        }
        for (index, n) in sectors.into_iter().enumerate() {
            let from = page * PAGE + index * SECTOR;
            let to = (from + SECTOR).min(image.len());
            if from < to {
                let source = versions.entry(n).or_insert_with(|| version(n));
                (from..to).for_each(|at| image[at] = source.get(at).copied().unwrap_or(0));
            }
        }
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(op: Op) -> Step {
        Step { op, unix_ms: 0 }
    }

    fn built(disk: &Disk, variant: Variant, seed: u64) -> BTreeMap<String, Vec<u8>> {
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path().join("image");
        disk.image(&at, variant, &mut fastrand::Rng::with_seed(seed));
        let files = fs::read_dir(&at).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        });
        files.collect()
    }

    #[test]
    fn only_what_was_synced_is_sure() {
        let scratch = tempfile::tempdir().unwrap();
        let mut disk = Disk::of(scratch.path());
        let root = inode(scratch.path());
        let write = |byte: u8| Op::Write { inode: u64::MAX, at: 0, data: vec![byte; PAGE].into() };
        disk.apply(&step(Op::Create { inode: u64::MAX, path: "a".into() }));
        disk.apply(&step(write(1)));
        disk.apply(&step(Op::Sync { inode: u64::MAX, path: "a".into() }));
        assert!(built(&disk, Variant::Drop, 1).is_empty(), "its directory was not synced");
        disk.apply(&step(Op::Sync { inode: root, path: "".into() }));
        disk.apply(&step(write(2)));
        disk.apply(&step(Op::Rename { from: "a".into(), to: "b".into() }));
        assert_eq!(built(&disk, Variant::Drop, 1), BTreeMap::from([("a".to_owned(), vec![1; PAGE])]));
        assert_eq!(built(&disk, Variant::Keep, 1), BTreeMap::from([("b".to_owned(), vec![2; PAGE])]));
        assert_eq!(built(&disk, Variant::Bare, 1), BTreeMap::from([("b".to_owned(), vec![1; PAGE])]));
        let torn: Vec<_> = (0..50).flat_map(|seed| built(&disk, Variant::Torn, seed).into_values()).collect();
        assert!(torn.iter().any(|page| page.contains(&1) && page.contains(&2)));
        assert!(torn.iter().flat_map(|page| page.chunks(SECTOR)).all(|sector| sector.iter().all(|b| b == &sector[0])));
        let random: Vec<_> = (0..50).flat_map(|seed| built(&disk, Variant::Random, seed).into_values()).collect();
        assert!(random.iter().all(|page| page.iter().all(|byte| byte == &page[0])), "a page is of one moment");
    }
}
