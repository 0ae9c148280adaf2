//! Writers that end: histories that once retired a writer too early, or killed a write of a writer that had not ended.

use std::collections::BTreeSet;

use super::Replica;
use crate::state::policy::Policies;

#[test]
fn a_writer_is_not_retired_while_a_part_of_its_log_is_missing() {
    let whole = 1 << 20;
    let [mut a, mut b, _, mut d] = [0, 1, 2, 3].map(Replica::<Policies>::new);
    a.put(2, 1);
    d.delta(&a, 0, whole);
    b.delta(&a, 0, whole);
    a.put(0, 2);
    // d merges the first of two ranges; then a has ended, as far as d knows.
    d.range(&a, 1);
    let of = d.number(0);
    d.writers.end(of);
    d.adopt();
    assert!(!d.retire(), "it knows that the log goes on, and lacks the rest");
    a.range(&d, 1);
    b.delta(&a, 0, whole);
    b.delta(&d, 3, whole);
    assert_eq!(b.holds(), BTreeSet::from([(0, 2), (2, 1)]));
}

#[test]
fn a_replica_behind_the_floor_of_a_writer_does_not_retire_it() {
    let whole = 1 << 20;
    let [mut a, mut b, mut c, mut d] = [0, 1, 2, 3].map(Replica::<Policies>::new);
    a.put(2, 1);
    b.delta(&a, 0, whole);
    d.delta(&a, 0, whole);
    a.put(0, 2);
    c.delta(&a, 0, whole);
    let of = c.number(0);
    c.writers.end(of);
    c.adopt();
    assert!(c.retire());
    // The first range has c's versions, but not all of its rows.
    d.range(&c, 1);
    let of = d.number(0);
    d.writers.end(of);
    d.adopt();
    assert!(!d.retire());
    a.range(&d, 1);
    b.delta(&a, 0, whole);
    b.delta(&c, 2, whole);
    assert_eq!(b.holds(), BTreeSet::from([(0, 2), (2, 1)]));
}

#[test]
fn a_writer_that_others_ended_does_not_kill_its_own_write_when_it_adopts_another() {
    let whole = 1 << 20;
    let [mut a, mut b, _, mut d] = [0, 1, 2, 3].map(Replica::<Policies>::new);
    d.put(0, 1);
    a.put(0, 2);
    b.delta(&a, 0, whole);
    a.snapshot(&d, whole);
    // a has ended, as far as b knows. b adopts its write and drops its row, and a learns of that by a snapshot.
    let of = b.number(0);
    b.writers.end(of);
    b.adopt();
    assert!(b.retire());
    a.snapshot(&b, whole);
    // d has ended, as far as a knows. a adopts d's write under the same key.
    let of = a.number(3);
    a.writers.end(of);
    a.adopt();
    b.delta(&a, 0, whole);
    b.delta(&d, 3, whole);
    assert_eq!(b.holds(), BTreeSet::from([(0, 1), (0, 2)]));
}
