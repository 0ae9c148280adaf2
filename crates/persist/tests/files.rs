//! A journal in a real folder: damaged files, the lock, modes, a removed folder, and sealed files.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use smg_persist::{
    Batch, Config, Folder, FolderError, FolderFiles, Fsync, Journal, KeyId, Loss, Recovered, Seal,
    SlotError, Slots, State,
};

const CONFIG: Config = Config {
    fsync: Fsync::Always,
    log_bytes: 4096,
    check_interval: Duration::from_secs(2),
    retry_first: Duration::from_secs(1),
    retry_last: Duration::from_secs(10),
};

type Keys = BTreeMap<Vec<u8>, Vec<u8>>;

fn open(
    path: &Path,
    seal: Option<Box<dyn Seal>>,
) -> (Journal<FolderFiles>, Recovered, Arc<Folder>) {
    let (folder, usable) = Folder::open(path, "r1 (pid 1)").unwrap();
    usable.unwrap();
    let (mut journal, found) = Journal::open(folder.files(), seal, CONFIG, Duration::ZERO);
    journal.turn(Duration::ZERO);
    (journal, found, folder)
}

fn put(journal: &mut Journal<FolderFiles>, key: u8, value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(vec![key], value.to_vec());
    let number = journal.push(batch, Duration::ZERO);
    while journal.synced() < number {
        journal.turn(Duration::ZERO);
    }
    // The log may have grown enough for a snapshot.
    journal.turn(Duration::ZERO);
}

fn keys(journal: &Journal<FolderFiles>) -> Keys {
    journal.entries().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// Writes 80 batches; returns the keys after each.
fn fill(path: &Path) -> Vec<Keys> {
    let (mut journal, _, _) = open(path, None);
    let mut history = vec![keys(&journal)];
    for n in 0..80u8 {
        put(&mut journal, n % 7, &vec![n; 40 + usize::from(n)]);
        history.push(keys(&journal));
    }
    assert!(journal.counters().snapshots > 1, "there is a snapshot before the last one");
    history
}

fn newest(path: &Path, kind: &str) -> std::path::PathBuf {
    let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    names
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(kind))
        .max()
        .unwrap()
}

#[test]
fn a_cut_or_flipped_log_loses_its_end_and_no_more_200_times() {
    let folder = tempfile::tempdir().unwrap();
    let history = fill(folder.path());
    let log = newest(folder.path(), "log-");
    let whole = fs::read(&log).unwrap();
    let mut rng = StdRng::seed_from_u64(27);
    for trial in 0..200 {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(folder.path()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        let at = rng.random_range(0..whole.len());
        let mut damaged = whole.clone();
        if trial % 2 == 0 {
            damaged.truncate(at);
        } else {
            damaged[at] ^= 1 << rng.random_range(0..8u32);
        }
        fs::write(copy.path().join(log.file_name().unwrap()), &damaged).unwrap();
        let (mut journal, found, _) = open(copy.path(), None);
        let found_keys = keys(&journal);
        assert!(history.contains(&found_keys), "trial {trial}, byte {at}: {found:?}");
        let is_cut_between_batches = trial % 2 == 0 && found.losses.is_empty();
        if found_keys != *history.last().unwrap() && !is_cut_between_batches {
            assert!(matches!(found.losses[..], [Loss::Tail { .. }]), "trial {trial}: {found:?}");
        }
        // It goes on from there.
        put(&mut journal, 9, b"later");
        let expected = keys(&journal);
        drop(journal);
        assert_eq!(keys(&open(copy.path(), None).0), expected);
    }
}

#[test]
fn a_damaged_snapshot_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let history = fill(folder.path());
    let snapshot = newest(folder.path(), "snapshot-");
    let mut bytes = fs::read(&snapshot).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 8;
    fs::write(&snapshot, bytes).unwrap();
    let (journal, found, _) = open(folder.path(), None);
    assert_eq!(keys(&journal), *history.last().unwrap());
    assert!(matches!(found.losses[..], [Loss::Snapshot { .. }]), "{found:?}");
}

#[test]
fn the_second_opener_is_refused_with_the_name_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let (_first, _) = Folder::open(folder.path(), "router-a (pid 17)").unwrap();
    let error = Folder::open(folder.path(), "router-b (pid 18)").unwrap_err();
    assert!(matches!(&error, FolderError::Held { holder, .. } if holder == "router-a (pid 17)"));
    let path = folder.path().display();
    assert_eq!(error.to_string(), format!("the data folder {path} is in use by router-a (pid 17)"));
}

#[test]
fn a_file_is_no_folder_and_a_missing_folder_is_created_for_its_owner_alone() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(Folder::open(&file, "r"), Err(FolderError::NotAFolder(_))));
    let path = parent.path().join("a/b");
    let (mut journal, ..) = open(&path, None);
    put(&mut journal, 1, b"v");
    Slots::new(Folder::files(&open_again(&parent.path().join("c"))))
        .put("keys", b"k", None)
        .unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for entry in fs::read_dir(&path).unwrap().chain(fs::read_dir(parent.path().join("c")).unwrap())
    {
        let entry = entry.unwrap().path();
        assert_eq!(mode(&entry), 0o600, "{}", entry.display());
    }
}

fn open_again(path: &Path) -> Arc<Folder> {
    let (folder, usable) = Folder::open(path, "r1 (pid 1)").unwrap();
    usable.unwrap();
    folder
}

#[test]
fn a_removed_folder_is_noticed_without_a_write_and_created_again() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("data");
    let (mut journal, _, folder) = open(&path, None);
    put(&mut journal, 1, b"v");
    fs::remove_dir_all(&path).unwrap();
    let checked = journal.turn(Duration::from_secs(2));
    assert!(checked.degraded);
    assert!(matches!(journal.state(), State::Degraded { cause, .. } if cause.contains("removed")));
    let mut batch = Batch::default();
    batch.put(vec![2], b"w".to_vec());
    journal.push(batch, Duration::from_secs(2));
    assert!(journal.turn(Duration::from_secs(3)).recovered);
    assert_eq!((journal.state(), journal.synced()), (State::Durable, 2));
    let expected = keys(&journal);
    drop((journal, folder));
    assert_eq!(keys(&open(&path, None).0), expected);
}

/// While the folder was away, another process has taken its name.
#[test]
fn a_folder_that_another_process_has_taken_meanwhile_stays_lost() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("data");
    let (mut journal, _, _folder) = open(&path, None);
    fs::remove_dir_all(&path).unwrap();
    let (_other, usable) = Folder::open(&path, "other (pid 5)").unwrap();
    usable.unwrap();
    journal.turn(Duration::from_secs(2));
    journal.turn(Duration::from_secs(3));
    let State::Degraded { cause, .. } = journal.state() else { panic!("it has two owners") };
    assert!(cause.ends_with("is in use by other (pid 5)"), "{cause}");
}

/// A seal for tests: it adds a checksum with its key, and changes all bytes.
#[derive(Debug)]
struct Xor(Vec<u8>);

impl Xor {
    fn id(key: u8) -> KeyId {
        [key; 8]
    }

    fn mix(key: u8, place: &[u8], bytes: &[u8]) -> Vec<u8> {
        let salt = place.iter().fold(key, |salt, byte| salt.wrapping_mul(31).wrapping_add(*byte));
        bytes.iter().map(|byte| byte ^ salt).collect()
    }
}

impl Seal for Xor {
    fn key_id(&self) -> KeyId {
        Self::id(self.0[0])
    }

    fn seal(&self, place: &[u8], plain: &[u8]) -> Vec<u8> {
        Self::mix(self.0[0], place, &[b"seal", plain].concat())
    }

    fn open(&self, key: KeyId, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let key = self.0.iter().find(|own| Self::id(**own) == key)?;
        Some(Self::mix(*key, place, sealed).strip_prefix(b"seal")?.to_vec())
    }
}

fn xor(keys: &[u8]) -> Option<Box<dyn Seal>> {
    Some(Box::new(Xor(keys.to_vec())))
}

#[test]
fn sealed_files_show_no_values_and_open_with_an_older_key() {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, ..) = open(folder.path(), xor(&[1]));
    put(&mut journal, 1, b"secret");
    drop(journal);
    let holds_secret = || {
        fs::read_dir(folder.path()).unwrap().any(|entry| {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            bytes.windows(6).any(|window| window == b"secret")
        })
    };
    assert!(!holds_secret());
    let (journal, found, _) = open(folder.path(), xor(&[2, 1]));
    assert_eq!((keys(&journal).len(), found.losses), (1, vec![]));
    drop(journal);
    let (journal, found, _) = open(folder.path(), xor(&[2]));
    assert_eq!(keys(&journal).len(), 1, "the snapshot at the start was sealed with the first key");
    assert_eq!(found.losses, []);
    drop(journal);
    let (journal, found, _) = open(folder.path(), xor(&[3]));
    assert_eq!(keys(&journal).len(), 0);
    assert!(matches!(found.losses[0], Loss::Sealed { .. }), "{found:?}");
    let kept = newest(folder.path(), "unreadable-snapshot-");
    assert!(kept.exists(), "what another key opens is not removed");
}

#[test]
fn a_slot_is_sealed_and_damage_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (open, _) = Folder::open(folder.path(), "r").unwrap();
    let mut slots = Slots::new(open.files());
    assert_eq!(slots.value("ring", None).unwrap(), None);
    let (one, two) = (Xor(vec![1]), Xor(vec![2]));
    slots.put("ring", b"secret", Some(&one)).unwrap();
    assert_eq!(slots.value("ring", Some(&one)).unwrap().unwrap(), b"secret");
    assert!(matches!(slots.value("ring", Some(&two)), Err(SlotError::Sealed(_))));
    assert!(matches!(slots.value("ring", None), Err(SlotError::Sealed(_))));
    let file = folder.path().join("slot-ring");
    let mut bytes = fs::read(&file).unwrap();
    bytes.pop();
    fs::write(&file, bytes).unwrap();
    assert!(matches!(slots.value("ring", Some(&one)), Err(SlotError::Damaged(_))));
    slots.clear("ring").unwrap();
    assert_eq!(slots.value("ring", None).unwrap(), None);
}
