//! The whole program from outside, in one test program. Tests run side by side, each with a state
//! directory, ports and a control database of its own. Those in `kubernetes` need a cluster and skip
//! themselves without one.

/// The HTTP interface.
mod api {
    mod bad_clients;
    mod bad_input;
    mod events;
    mod operations;
    mod people;
    mod tls;
}

/// What an attacker does.
mod attacks {
    mod answers;
    mod api;
    mod confined_work;
    mod confinement;
    mod files;
    mod intruder;
    mod output;
    mod owner;
    mod shares;
    mod way_in;
}

/// The command line.
mod cli {
    mod login;
    mod server_words;
    mod terminal;
}

/// Instances on this machine.
mod instances {
    mod adopt;
    mod apply;
    mod authorities;
    mod bad_days;
    mod bad_places;
    mod drift;
    mod first_use;
    mod health;
    mod logs;
    mod metrics;
    mod passwords;
    mod power;
    mod secrets;
    mod top;
    mod versions;
    mod why;
}

/// Instances on a Kubernetes cluster.
mod kubernetes {
    mod apply;
    mod attacks;
    mod bad_days;
    mod bad_input;
    mod drift;
    mod first_use;
    mod health;
    mod kill;
    mod logs;
    mod operations;
    mod power;
    mod secrets;
    mod why;
}

/// The server: killed, several of them, and their databases.
mod servers {
    mod clocks;
    mod database_bad_days;
    mod drift;
    mod kill;
    mod machine;
    mod many_servers;
    mod overlap;
}

/// The metadata store, on a real PostgreSQL.
mod store {
    mod cancel;
    mod events;
    mod instances;
    mod operations;
    mod people;
    mod sweep;
}
