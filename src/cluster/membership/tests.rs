//! Tests of the membership, played by hand.
