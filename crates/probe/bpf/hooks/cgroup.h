/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Hook:    tp_btf/cgroup_mkdir and tp_btf/cgroup_rmdir, since 4.14
 * Context: process; rare
 * Feeds:   the names of cgroups, so that a container that lives for a moment is still named.
 * Cost:    4 to 5 us for each cgroup made or removed: docs/overhead.md.
 */
#include "../gauge.h"

static __always_inline void on_cgroup(__u64 *ctx, bool removed)
{
	struct cgroup *cgroup = (void *)ctx[0];
	struct cgroup_event *e;
	long len;

	if (cgroup->root->hierarchy_id != owner_hierarchy)
		return;
	e = bpf_ringbuf_reserve(&cgroup_events, sizeof(*e), 0);
	if (!e) {
		lose(LOSS_CGROUP_EVENT);
		return;
	}
	e->id = cgroup->kn->id;
	e->removed = removed;
	len = bpf_probe_read_kernel_str(e->path, sizeof(e->path), (void *)ctx[1]);
	/* The length counts the final zero; a full buffer may have been cut. */
	e->path_len = len > 0 && len < CGROUP_PATH_LEN ? len - 1 : 0;
	bpf_ringbuf_submit(e, 0);
}

SEC("tp_btf/cgroup_mkdir")
int cgroup_made(__u64 *ctx)
{
	on_cgroup(ctx, false);
	return 0;
}

SEC("tp_btf/cgroup_rmdir")
int cgroup_removed(__u64 *ctx)
{
	on_cgroup(ctx, true);
	return 0;
}
