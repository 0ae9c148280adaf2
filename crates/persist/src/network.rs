//! File systems that other machines share.

/// The name of the network file system with this magic number of `statfs`; `None`: it is a local one, or unknown.
///
/// Locks and syncs of these depend on their servers: two routers may both get the lock, and a sync may wait for ever.
#[must_use]
pub fn network_file_system(magic: u64) -> Option<&'static str> {
    Some(match magic & 0xffff_ffff {
        0x6969 => "NFS",
        0x517b => "SMB",
        0xff53_4d42 => "CIFS",
        0xfe53_4d42 => "SMB 2",
        0x00c3_6400 => "Ceph",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x0102_1997 => "9p",
        0x0bd0_0bd0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x7461_636f => "OCFS2",
        0x0116_1970 => "GFS2",
        0x7375_7245 => "Coda",
        0x6573_5546 => "FUSE (GlusterFS, s3fs or another one)",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::network_file_system;

    #[test]
    fn shared_file_systems_are_recognised_and_local_ones_are_not() {
        for (magic, name) in
            [(0x6969, "NFS"), (0xff53_4d42, "CIFS"), (0xffff_ffff_ff53_4d42, "CIFS")]
        {
            assert_eq!(network_file_system(magic), Some(name));
        }
        // ext4, tmpfs, xfs, btrfs, overlayfs
        for local in [0xef53, 0x0102_1994, 0x5846_5342, 0x9123_683e, 0x794c_7630] {
            assert_eq!(network_file_system(local), None, "{local:x}");
        }
    }
}
