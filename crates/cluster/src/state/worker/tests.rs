//! Records of workers: conversion, validation, registrations, and the laws of the table.

use std::num::NonZeroU32;

use super::*;
use crate::state::table::tests::{SharedSample, check_histories};

pub(super) fn golden() -> Golden {
    let mut spec = WorkerSpec::new("http://w1:8000/v1".parse().unwrap());
    spec.models = vec!["m".into(), "n".into()];
    spec.aliases.insert("a".into(), "m".into());
    spec.labels.insert("pool".to_owned(), "blue".to_owned());
    spec.region = Some("eu".to_owned());
    spec.zone = Some("eu-1".to_owned());
    spec.priority = -3;
    spec.weight = Weight::try_from(7).unwrap();
    spec.api_key = Some(Secret::new("sk-1"));
    spec.health.endpoint = Some("/ok".to_owned());
    spec.health.interval = Some(Duration::from_millis(1500));
    spec.health.timeout = Some(Duration::from_millis(250));
    spec.health.failure_threshold = NonZeroU32::new(4);
    spec.health.success_threshold = NonZeroU32::new(2);
    spec.health.disabled = true;
    spec.max_concurrent = NonZeroU32::new(9);
    let record = WorkerRecord { kind: 2, registration: Some(8998), ..WorkerRecord::from(&spec) };
    let verdict =
        Override { state: OverrideState::Down, reason: "disk".to_owned(), until_ms: Some(99) };
    Golden {
        writes: vec![
            WorkerWrite::Put(record.into_configured()).into(),
            WorkerWrite::Override(spec.id(), Some(verdict)).into(),
            WorkerWrite::AdminState(spec.id(), AdminState::Cordoned).into(),
        ],
        key: "12772d39336635376431663833656339383666",
        content: "010101fd0068e5cf8b01000000fdafdcd659883d46e712772d3933663537643166383365633938366611687474703a2f2f77313a383030302f763102016d016e010161016d020104706f6f6c04626c756501026575010465752d3105070104736b2d3101032f6f6b0101fc0065cd1d0100fc80b2e60e0104010201010901fb262301fd134cbadf3dedc80901fd0068e5cf8b01000001fdafdcd659883d46e70101046469736b016301fd0068e5cf8b01000002fdafdcd659883d46e7010000",
    }
}

#[test]
fn a_spec_is_the_same_after_conversion_to_a_record_and_back() {
    let mut spec = WorkerSpec::new("http://[::1]:8000/v".parse().unwrap());
    spec.models = vec!["m".into()];
    spec.aliases.insert("a".into(), "m".into());
    spec.labels.insert("k".to_owned(), "v".to_owned());
    spec.zone = Some("z".to_owned());
    spec.priority = -3;
    spec.weight = Weight::try_from(7).unwrap();
    spec.api_key = Some(Secret::new("hunter2"));
    spec.health.interval = Some(Duration::from_millis(1500));
    spec.max_concurrent = NonZeroU32::new(9);
    let pins = WorkerTls::Pins(vec![smg_types::spec::Pin([7; 32])]);
    for tls in [WorkerTls::Authorities, pins, WorkerTls::Unchecked] {
        spec.tls = tls;
        let record = WorkerRecord::from(&spec);
        assert_eq!(WorkerSpec::try_from(&record).as_ref(), Ok(&spec));
        assert!(!format!("{record:?}").contains("hunter2"));
    }
}

#[test]
fn a_record_of_an_invalid_spec_is_refused() {
    let spec = WorkerSpec::new("http://a:80".parse().unwrap());
    let record = WorkerRecord::from(&spec);
    let check = |record: WorkerRecord| {
        let entry = WorkerEntry::with_record(LwwRegister::of(Stamp::default(), record));
        Workers::validate(&spec.id(), &entry)
    };
    assert_eq!(check(record.clone()), Ok(()));
    assert!(check(WorkerRecord { url: "http://A".to_owned(), ..record.clone() }).is_err());
    assert!(check(WorkerRecord { url: "http://b:80".to_owned(), ..record.clone() }).is_err());
    assert!(check(WorkerRecord { weight: 0, ..record.clone() }).is_err());
    assert!(check(WorkerRecord { kind: 9, ..record.clone() }).is_err());
    // A later version may support this one.
    let prefill = WorkerRecord { kind: 1, ..record };
    assert_eq!(check(prefill.clone()), Ok(()));
    assert_eq!(WorkerSpec::try_from(&prefill), Err(WorkerRecordError::Kind(1)));
}

#[test]
fn each_registration_has_a_number_of_its_own_and_a_change_of_the_spec_keeps_it() {
    let spec = WorkerSpec::new("http://a:80".parse().unwrap());
    let now = Now::at(Duration::from_secs(5));
    let first = WorkerRecord::registered(&spec, None, now);
    let second = WorkerRecord::registered(&spec, Some(&first), now);
    assert!(first.registration().is_some() && second.registration().is_some());
    assert_ne!(first.registration(), second.registration());
    let later = WorkerRecord::registered(&spec, None, now + Duration::from_millis(1));
    assert_ne!(later.registration(), first.registration());
    let configured = WorkerRecord::configured(&spec);
    assert_eq!(configured.registration(), None);
    let again = WorkerRecord::registered(&spec, Some(&configured), now);
    assert_eq!(again.configuration(), configured.configuration());
    let changed = WorkerRecord::from(&WorkerSpec { priority: 1, ..spec }).replacing(&again);
    assert_eq!(changed.registration(), again.registration());
    assert_eq!(changed.configuration(), again.configuration());
}

fn numbered(n: u8) -> WorkerSpec {
    WorkerSpec::new(format!("http://w{n}:1").parse().unwrap())
}

impl SharedSample for Workers {
    fn key(n: u8) -> WorkerId {
        numbered(n).id()
    }

    fn value(n: u8, number: u64, stamp: Stamp, _: Option<&WorkerEntry>) -> WorkerEntry {
        let priority = i32::try_from(number).unwrap();
        WorkerEntry::with_record(LwwRegister::of(
            stamp,
            WorkerRecord::from(&WorkerSpec { priority, ..numbered(n) }),
        ))
    }

    fn number(value: &WorkerEntry) -> u64 {
        let spec = WorkerSpec::try_from(value.record().unwrap()).unwrap();
        u64::try_from(spec.priority).unwrap()
    }
}

#[test]
fn workers_hold_what_an_add_wins_set_holds() {
    check_histories::<Workers>(2_500);
}
