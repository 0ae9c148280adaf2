//! The parts of `smg` that touch the process and the machine: the clock, named tasks with a stated meaning of their end,
//! TLS configurations that are read again when their files change, connections by name, shortages of resources, and logs.

pub mod clock;
pub mod descriptors;
pub mod dial;
pub mod memory;
pub mod resolve;
pub mod shortage;
pub mod tasks;
pub mod telemetry;
pub mod tls;
