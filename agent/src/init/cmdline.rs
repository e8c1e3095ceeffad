//! What the kernel's command line tells PID 1. Other programs' words on it are not looked at.

use std::net::Ipv4Addr;

/// What is to be brought up: see the table in [`super`].
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct CmdLine {
    pub(super) port: Option<String>,
    pub(super) modules: Vec<String>,
    pub(super) root: Option<String>,
    pub(super) data: Option<String>,
    pub(super) net: Option<StaticAddress>,
}

/// A network card's address, and where its packets and questions go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct StaticAddress {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) gateway: Ipv4Addr,
    pub(super) dns: Ipv4Addr,
}

impl CmdLine {
    /// Reads the command line. A value that cannot be read is told on the console and left out.
    pub(super) fn parse(text: &str) -> Self {
        let mut told = Self::default();
        for (key, value) in text.split_whitespace().filter_map(|word| word.split_once('=')) {
            match key {
                "flyci.port" => told.port = Some(value.to_owned()),
                "flyci.modules" => told.modules = modules(value),
                "flyci.root" => told.root = Some(value.to_owned()),
                "flyci.data" => told.data = Some(value.to_owned()),
                "flyci.net" => {
                    told.net = StaticAddress::parse(value);
                    if told.net.is_none() {
                        eprintln!("flyci-agent: flyci.net={value} is not ADDRESS/PREFIX,GATEWAY,DNS");
                    }
                }
                _ => {}
            }
        }
        told
    }
}

/// The names of modules, which are no paths.
fn modules(value: &str) -> Vec<String> {
    let plain = |name: &&str| !name.is_empty() && !name.contains('/');
    value.split(',').filter(plain).map(str::to_owned).collect()
}

impl StaticAddress {
    fn parse(value: &str) -> Option<Self> {
        let mut parts = value.split(',');
        let (address, prefix) = parts.next()?.split_once('/')?;
        let parsed = Self {
            address: address.parse().ok()?,
            prefix: prefix.parse().ok().filter(|prefix| *prefix <= 32)?,
            gateway: parts.next()?.parse().ok()?,
            dns: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_flyci_are_read_among_others() {
        let told = CmdLine::parse(
            "console=ttyS0 quiet flyci.port=flyci.agent.0 flyci.modules=virtio_net,,../x,virtio_blk \
             flyci.root=/dev/vda flyci.net=10.0.2.15/24,10.0.2.2,10.0.2.3\n",
        );
        assert_eq!(told.port.as_deref(), Some("flyci.agent.0"));
        assert_eq!(told.modules, ["virtio_net", "virtio_blk"]);
        assert_eq!(told.root.as_deref(), Some("/dev/vda"));
        assert_eq!(told.data, None);
        let net = told.net.expect("a good address");
        assert_eq!((net.prefix, net.gateway), (24, Ipv4Addr::new(10, 0, 2, 2)));
    }

    #[test]
    fn a_bad_address_is_left_out() {
        for bad in ["10.0.2.15", "10.0.2.15/33,10.0.2.2,10.0.2.3", "10.0.2.15/24,10.0.2.2", "a/b,c,d"] {
            assert_eq!(StaticAddress::parse(bad), None, "{bad}");
        }
    }
}
