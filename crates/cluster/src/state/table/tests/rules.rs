//! The rules about rows in the smallest history that needs each: R3 to R9, R13, R24 and R33 of `docs/replication.md`.

use std::collections::BTreeSet;

use smg_types::ids::ModelId;

use crate::state::policy::Policies;
use crate::state::row::{ContentRef, RawRow, encode_key};
use crate::state::store::Store;
use crate::state::table::tests::{Replica, SharedSample};
use crate::state::table::{
    Applied, MAX_PENDING, Mark, NotAppliedReason, Replica as _, SnapshotRange,
};

const WHOLE: usize = 1 << 20;

type Node = Replica<Policies>;

fn nodes() -> [Node; 4] {
    [0, 1, 2, 3].map(Replica::new)
}

fn set<const N: usize>(held: [(u8, u64); N]) -> BTreeSet<(u8, u64)> {
    held.into()
}

fn rows(node: &Node) -> usize {
    node.table.cells.values().map(|cell| cell.len()).sum()
}

/// Drops all tombstones of the log of `of` that `node` covers.
fn collect(node: &mut Node, of: usize) {
    let of = node.number(of);
    node.table.collect(of, u64::MAX);
}

/// `of` has ended, as far as `node` knows, and `node` adopts its rows.
fn adopt(node: &mut Node, of: usize) {
    let of = node.number(of);
    node.writers.end(of);
    node.adopt();
}

/// b has replaced a's write, which c has too. b has dropped the kill.
fn a_kill_that_is_collected() -> [Node; 4] {
    let [mut a, mut b, mut c, d] = nodes();
    a.put(0, 1);
    b.delta(&a, 0, WHOLE);
    c.delta(&a, 0, WHOLE);
    b.put(0, 2);
    collect(&mut b, 1);
    [a, b, c, d]
}

/// c has replaced a's write. b has received that, but not a's log, and has dropped the kill.
fn a_kill_that_waits() -> [Node; 4] {
    let [mut a, mut b, mut c, d] = nodes();
    a.put(0, 1);
    c.delta(&a, 0, WHOLE);
    c.put(0, 2);
    b.delta(&c, 2, WHOLE);
    collect(&mut b, 2);
    assert_eq!((b.table.sizes().tombstones, b.table.sizes().pending), (0, 1));
    [a, b, c, d]
}

/// R3.
#[test]
fn a_kill_stays_when_its_writer_writes_the_key_again() {
    let [mut a, mut b, mut c, _] = nodes();
    a.put(0, 1);
    b.delta(&a, 0, WHOLE);
    c.delta(&a, 0, WHOLE);
    b.put(0, 2);
    b.put(0, 3);
    c.delta(&b, 1, WHOLE);
    assert_eq!(c.holds(), set([(0, 3)]));
}

/// R3.
#[test]
fn a_kill_stays_when_its_writer_adopts_a_write_under_the_key() {
    let [mut a, mut b, mut c, mut d] = nodes();
    a.put(0, 1);
    b.delta(&a, 0, WHOLE);
    c.delta(&a, 0, WHOLE);
    b.put(0, 2);
    d.put(0, 3);
    b.delta(&d, 3, WHOLE);
    adopt(&mut b, 3);
    c.delta(&b, 1, WHOLE);
    assert_eq!(c.holds(), set([(0, 2), (0, 3)]));
}

/// R4.
#[test]
fn a_tombstone_without_kills_is_kept_and_relayed() {
    let [mut a, mut b, mut c, _] = nodes();
    a.put(0, 1);
    c.delta(&a, 0, WHOLE);
    a.remove(0);
    assert_eq!(a.table.sizes().tombstones, 1);
    b.delta(&a, 0, WHOLE);
    c.delta(&b, 0, WHOLE);
    assert_eq!(c.holds(), set([]));
}

/// R5.
#[test]
fn a_kill_waits_for_a_dot_that_arrives_after_the_kill_was_collected() {
    let [a, mut b, _, _] = a_kill_that_waits();
    b.delta(&a, 0, WHOLE);
    assert_eq!(b.holds(), set([(0, 2)]));
    assert_eq!(b.table.sizes().pending, 0, "the dot is covered now");
}

/// R6.
#[test]
fn a_row_whose_dots_are_dead_is_dropped_without_a_version() {
    let [mut a, mut b, mut c, _] = nodes();
    a.put(0, 1);
    b.delta(&a, 0, WHOLE);
    b.put(0, 2);
    // The row is here when the kill comes.
    a.delta(&b, 1, WHOLE);
    let version = a.table.applied(a.number(0));
    assert_eq!((a.holds(), rows(&a), version), (set([(0, 2)]), 1, 1));
    // The kill is here when the row comes.
    let [mut d, _, _, _] = nodes();
    d.put(0, 1);
    c.delta(&b, 1, WHOLE);
    c.delta(&d, 0, WHOLE);
    assert_eq!((c.holds(), rows(&c)), (set([(0, 2)]), 1));
}

/// R7.
#[test]
fn a_snapshot_ends_what_its_donor_covers_and_does_not_hold() {
    let [_, b, mut c, _] = a_kill_that_is_collected();
    c.snapshot(&b, WHOLE);
    assert_eq!(c.holds(), set([(0, 2)]));
}

/// R7.
#[test]
fn a_snapshot_ends_a_dot_in_a_row_that_its_donor_does_not_cover() {
    let [_, b, mut c, _] = a_kill_that_is_collected();
    adopt(&mut c, 0);
    let of = c.number(0);
    c.table.retire(of);
    assert_eq!(c.holds(), set([(0, 1)]), "in a row of c alone");
    c.snapshot(&b, WHOLE);
    assert_eq!(c.holds(), set([(0, 2)]));
}

/// R7.
#[test]
fn a_snapshot_ends_a_dot_in_a_row_that_its_donor_covers_although_no_kill_could_wait() {
    let [mut a, mut b, mut c, mut d] = nodes();
    a.put(0, 1);
    c.delta(&a, 0, WHOLE);
    adopt(&mut c, 0);
    // b and d receive a's write in the row of c. b removes it, and has no room for a kill that waits.
    b.delta(&c, 2, WHOLE);
    d.delta(&c, 2, WHOLE);
    let other = b.number(3);
    let waiting = (0..MAX_PENDING).map(|n| (ModelId::new(format!("other{n}")), 1));
    b.table.pending.insert(other, waiting.collect());
    b.remove(0);
    collect(&mut b, 1);
    d.snapshot(&b, WHOLE);
    assert_eq!(d.holds(), set([]));
}

/// R7: what the donor has dropped need not be kept here either.
#[test]
fn a_snapshot_drops_rows_that_its_donor_has_dropped_if_others_hold_their_dots() {
    let [mut a, mut b, mut c, _] = nodes();
    a.put(0, 1);
    b.delta(&a, 0, WHOLE);
    c.delta(&a, 0, WHOLE);
    adopt(&mut b, 0);
    assert!(b.retire());
    c.snapshot(&b, WHOLE);
    assert_eq!((c.holds(), rows(&c)), (set([(0, 1)]), 1));
}

/// R7, R9: a snapshot of a donor that knows less brings nothing back, not even tombstones.
#[test]
fn a_snapshot_brings_back_neither_rows_nor_tombstones_that_are_covered() {
    let [_, mut b, c, _] = a_kill_that_is_collected();
    b.snapshot(&c, WHOLE);
    assert_eq!(b.holds(), set([(0, 2)]));
    let [mut a, mut b, _, _] = nodes();
    a.put(0, 1);
    a.remove(0);
    b.delta(&a, 0, WHOLE);
    collect(&mut b, 0);
    b.snapshot(&a, WHOLE);
    assert_eq!(b.table.sizes().tombstones, 0);
}

/// R8.
#[test]
fn a_snapshot_includes_the_kills_that_wait_at_its_donor() {
    let [a, b, _, mut d] = a_kill_that_waits();
    d.snapshot(&b, WHOLE);
    d.delta(&a, 0, WHOLE);
    assert_eq!(d.holds(), set([(0, 2)]));
}

/// R9.
#[test]
fn a_dot_that_is_covered_and_not_held_does_not_come_back_in_another_row() {
    let [_, mut b, mut c, _] = a_kill_that_is_collected();
    adopt(&mut c, 0);
    b.delta(&c, 2, WHOLE);
    assert_eq!(b.holds(), set([(0, 2)]));
}

fn raw(version: u64, n: u8, content: Vec<u8>) -> RawRow {
    let key = encode_key(&Policies::key(n));
    RawRow { version, key: key.into(), content: content.into() }
}

/// The result of applying a row that is too long.
const TOO_LONG: Applied = Applied::Refused(NotAppliedReason::TooLong);

/// A row that no table of policies keeps.
fn refused(version: u64, n: u8) -> RawRow {
    raw(version, n, vec![1; Policies::MAX_CONTENT_BYTES + 1])
}

/// a has written under the keys 0, 1 and 2. b has refused to keep the second row; c has all.
fn a_log_with_a_hole() -> [Node; 4] {
    let [mut a, mut b, mut c, d] = nodes();
    for n in 0..3 {
        a.put(n, u64::from(n) + 1);
    }
    c.delta(&a, 0, WHOLE);
    let of = b.number(0);
    let mut rows = a.table.rows_after(&a.writers, of, 0, WHOLE).rows;
    rows[1] = refused(2, 1);
    b.with(|table, parts| {
        let applied = rows.iter().map(|row| table.apply(parts, of, row)).collect::<Vec<_>>();
        assert_eq!(applied, [Applied::Changed, TOO_LONG, Applied::Changed]);
        table.advance(of, 3, 3);
    });
    [a, b, c, d]
}

/// R13.
#[test]
fn a_log_is_not_relayed_from_a_refused_row_on() {
    let [_, b, _, mut d] = a_log_with_a_hole();
    let of = d.number(0);
    assert_eq!(b.table.applied(of), 3, "the row is not asked for again");
    d.delta(&b, 0, WHOLE);
    assert_eq!((d.table.applied(of), d.holds()), (1, set([(0, 1)])));
}

/// R13.
#[test]
fn a_refused_row_is_not_taken_for_dead() {
    let [_, mut b, mut c, _] = a_log_with_a_hole();
    // c merges a snapshot of b, which lacks the row.
    c.snapshot(&b, WHOLE);
    assert_eq!(c.holds(), set([(0, 1), (1, 2), (2, 3)]));
    // b merges a snapshot of c, in which the row can be kept.
    b.snapshot(&c, WHOLE);
    assert_eq!(b.holds(), set([(0, 1), (1, 2), (2, 3)]));
    assert!(
        b.table.merged_ranges.is_empty(),
        "the range covers nothing that the log will cover later"
    );
}

/// R13: the same of a row in a range of a snapshot, of which the log is not applied.
#[test]
fn a_row_that_was_refused_in_a_range_of_a_snapshot_is_not_taken_for_dead() {
    let [mut a, mut b, mut c, _] = nodes();
    for n in 0..3 {
        a.put(n, u64::from(n) + 1);
    }
    c.delta(&a, 0, WHOLE);
    let of = b.number(0);
    let donor = a.table.range_after(&a.writers, None, WHOLE).unwrap();
    let mut rows: Vec<_> = donor.rows.into_iter().filter(|(_, row)| row.version < 3).collect();
    rows[1].1 = refused(2, 1);
    let end = Some(encode_key(&Policies::key(2)).into());
    let marks = vec![Mark { writer: of, version: 3, floor: 0 }];
    let range = SnapshotRange { after: None, end, marks, rows, pending: Vec::new() };
    b.with(|table, parts| table.merge_range(parts, &range)).unwrap();
    assert_eq!(b.holds(), set([(0, 1)]));
    // What b hands on does not say that the row is dead.
    c.snapshot(&b, WHOLE);
    assert_eq!(c.holds(), set([(0, 1), (1, 2), (2, 3)]));
    // The log brings b what was not in the range.
    b.delta(&a, 0, WHOLE);
    assert_eq!(b.holds(), set([(0, 1), (1, 2), (2, 3)]));
    assert!(b.table.merged_ranges.is_empty(), "nothing more of the log will be covered");
}

/// R24.
#[test]
fn a_floor_is_taken_over_with_a_snapshot() {
    let [mut a, mut b, mut c, mut d] = nodes();
    a.put(0, 1);
    d.delta(&a, 0, WHOLE);
    a.remove(0);
    a.put(1, 2);
    collect(&mut a, 0);
    b.snapshot(&a, WHOLE);
    d.delta(&b, 0, WHOLE);
    assert_eq!(d.holds(), set([(1, 2)]), "d has not applied the removal");
    // The same with a delta instead of a snapshot.
    c.delta(&b, 0, WHOLE);
    let of = c.number(0);
    assert_eq!(c.table.floor(of), a.table.floor(of));
}

/// R33.
#[test]
fn a_writer_with_tombstones_is_not_retired() {
    let [mut a, mut b, _, _] = nodes();
    a.put(0, 1);
    a.put(1, 2);
    a.remove(1);
    b.delta(&a, 0, WHOLE);
    adopt(&mut b, 0);
    assert!(!b.retire(), "a node that lacks the removal would not learn of it");
    collect(&mut b, 0);
    assert!(b.retire());
    assert_eq!((b.holds(), rows(&b)), (set([(0, 1)]), 1));
}

/// R33.
#[test]
fn a_writer_of_which_a_row_was_refused_is_not_retired() {
    let [_, mut b, mut c, _] = a_log_with_a_hole();
    adopt(&mut b, 0);
    assert!(!b.retire(), "the row that it lacks is not adopted");
    adopt(&mut c, 0);
    assert!(c.retire());
}

/// R33.
#[test]
fn a_writer_is_not_retired_before_its_writes_are_in_other_rows() {
    let [mut a, mut b, mut c, _] = nodes();
    a.put(0, 1);
    b.delta(&a, 0, WHOLE);
    c.delta(&a, 0, WHOLE);
    let of = b.number(0);
    b.writers.end(of);
    assert!(!b.retire());
    // A row of a writer that has ended too is not enough.
    adopt(&mut c, 0);
    b.delta(&c, 2, WHOLE);
    let other = b.number(2);
    b.writers.end(other);
    assert!(!b.retire());
    b.adopt();
    assert!(b.retire());
    assert_eq!((b.holds(), b.table.applied(of), b.table.floor(of)), (set([(0, 1)]), 1, 1));
}

/// A content that decodes, so that a row is refused for its length alone.
#[test]
fn a_row_at_the_limit_is_not_refused() {
    let [_, mut b, _, _] = nodes();
    let of = b.number(0);
    let tombstone = ContentRef::<u64> { add: None, carried: &[], kills: &[] }.encode().unwrap();
    let applied = b.with(|table, parts| {
        [raw(1, 0, tombstone), raw(2, 1, vec![9; Policies::MAX_CONTENT_BYTES]), refused(3, 2)]
            .map(|row| table.apply(parts, of, &row))
    });
    assert_eq!(applied, [Applied::Nothing, Applied::Quarantined, TOO_LONG]);
}
