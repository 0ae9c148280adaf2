//! Where the outside world enters `smg`: the clock, tasks with a name and a stated end, TLS configurations that follow
//! their files, connections by name, shortages of the process's own resources, and logs.

pub mod clock;
pub mod descriptors;
pub mod dial;
pub mod resolve;
pub mod shortage;
pub mod tasks;
pub mod telemetry;
pub mod tls;
