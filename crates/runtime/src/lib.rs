//! Where the outside world enters `smg`: the clock, tasks with a name and a stated end, TLS configurations that follow
//! their files, and logs.

pub mod clock;
pub mod tasks;
pub mod telemetry;
pub mod tls;
