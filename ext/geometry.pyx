"""Places to (disk, dbn) and back, on arrays, on extents and on the words of a plane.

A group's row: first, n_data, n_parity, chunk_blocks, disk_blocks, members_at; rows ascend by `first` and do not
overlap. Its disks' indexes are members[members_at:], data first. For place p of a group, with off = p - first:

    chunk = off // chunk_blocks        row = chunk // n_data        data disk = chunk % n_data
    dbn = row * chunk_blocks + off % chunk_blocks

Everything is a multiple of 64 blocks, so that a word of a plane lies on one disk.
"""

from libc.stdint cimport int64_t, uint64_t

cdef extern from * nogil:
    """
    #define bp_ctz64(w) ((int64_t)__builtin_ctzll(w))
    """
    int64_t bp_ctz64(uint64_t word)

cdef enum:
    ROW_FIELDS = 6


cdef struct Group:
    int64_t first
    int64_t n_data
    int64_t n_parity
    int64_t chunk
    int64_t disk_blocks
    int64_t members_at


cdef int check_groups(const int64_t[:, ::1] groups, const int64_t[::1] members) except -1:
    cdef int64_t g, n_data, n_parity, chunk, disk_blocks
    cdef int64_t previous_stop = 0
    if groups.shape[1] != ROW_FIELDS:
        raise ValueError(f"groups: {groups.shape[1]} fields a row, not {ROW_FIELDS}")
    for g in range(groups.shape[0]):
        n_data, n_parity, chunk, disk_blocks = groups[g, 1], groups[g, 2], groups[g, 3], groups[g, 4]
        # the product below must not wrap: 2**20 disks of 2**42 blocks are beyond any machine
        if not (0 < n_data < 1 << 20 and 0 <= n_parity < 1 << 20 and 0 < chunk <= disk_blocks < 1 << 42):
            raise ValueError(f"groups: row {g} is out of range")
        if chunk % 64 or disk_blocks % chunk or groups[g, 0] % 64:
            raise ValueError(f"groups: row {g} is not in multiples of 64 blocks and of its chunk")
        if not previous_stop <= groups[g, 0] < 1 << 62:
            raise ValueError(f"groups: row {g} begins inside the one before")
        previous_stop = groups[g, 0] + n_data * disk_blocks
        if not 0 <= groups[g, 5] <= members.shape[0] - n_data - n_parity:
            raise ValueError(f"groups: row {g} names members beyond the table")
    return 0


cdef inline Group group_of(const int64_t* row) noexcept nogil:
    cdef Group group
    group.first = row[0]
    group.n_data = row[1]
    group.n_parity = row[2]
    # one data disk: chunks follow each other, so that the disk is one chunk
    group.chunk = row[3] if row[1] > 1 else row[4]
    group.disk_blocks = row[4]
    group.members_at = row[5]
    return group


cdef inline int64_t find_group(const int64_t* groups, int64_t n_groups, int64_t place, int64_t hint) noexcept nogil:
    """Row of the group that holds the place, or -1; `hint` is tried first."""
    cdef int64_t low = 0
    cdef int64_t high = n_groups
    cdef int64_t middle
    cdef const int64_t* row = groups + hint * ROW_FIELDS
    if not row[0] <= place < row[0] + row[1] * row[4]:
        while low < high:
            middle = (low + high) // 2
            if groups[middle * ROW_FIELDS] <= place:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return -1
        hint = low - 1
        row = groups + hint * ROW_FIELDS
        if not row[0] <= place < row[0] + row[1] * row[4]:
            return -1
    return hint


cdef struct Spot:
    int64_t member       # which data disk of its group, from 0
    int64_t dbn
    int64_t left         # blocks of its chunk, from it on


cdef inline Spot spot_of(Group group, int64_t place) noexcept nogil:
    cdef Spot spot
    cdef int64_t off = place - group.first
    cdef int64_t chunk_index = off // group.chunk
    cdef int64_t within = off % group.chunk
    spot.member = chunk_index % group.n_data
    spot.dbn = chunk_index // group.n_data * group.chunk + within
    spot.left = group.chunk - within
    return spot


cdef int64_t split_places(
    const int64_t* groups, int64_t n_groups, const int64_t* places, int64_t n, const int64_t* members,
    int64_t* disk, int64_t* dbn,
) noexcept nogil:
    cdef int64_t i, at
    cdef int64_t g = 0
    cdef Group group = group_of(groups)
    cdef Spot spot
    for i in range(n):
        at = find_group(groups, n_groups, places[i], g)
        if at < 0:
            return -1 - i
        if at != g:
            g = at
            group = group_of(groups + g * ROW_FIELDS)
        spot = spot_of(group, places[i])
        disk[i] = members[group.members_at + spot.member]
        dbn[i] = spot.dbn
    return n


cdef int64_t split(
    const int64_t* groups, int64_t n_groups, const int64_t* extents, int64_t n, const int64_t* members,
    int64_t* disk, int64_t* dbn, int64_t* n_blocks, int64_t* position,
) noexcept nogil:
    """Pieces of the extents, in their order; only counted when disk is NULL. -1 - i: extent i is outside."""
    cdef int64_t i, start, stop, length
    cdef int64_t n_pieces = 0
    cdef int64_t done = 0
    cdef int64_t g = 0
    cdef Group group
    cdef Spot spot
    for i in range(n):
        start, stop = extents[2 * i], extents[2 * i + 1]
        if stop < start:
            return -1 - i
        while start < stop:
            g = find_group(groups, n_groups, start, g)
            if g < 0:
                return -1 - i
            group = group_of(groups + g * ROW_FIELDS)
            spot = spot_of(group, start)
            length = min(spot.left, stop - start)
            if disk != NULL:
                disk[n_pieces] = members[group.members_at + spot.member]
                dbn[n_pieces] = spot.dbn
                n_blocks[n_pieces] = length
                position[n_pieces] = done
            n_pieces += 1
            done += length
            start += length
    return n_pieces


cdef int64_t extents_of_disk(
    Group group, int64_t position, int64_t first_off, const uint64_t* words, int64_t n_words, bint merge,
    int64_t* dbn, int64_t* n_blocks, int64_t* place,
) noexcept nogil:
    """Runs of set bits on one data disk, ascending; only counted when dbn is NULL."""
    cdef int64_t stop_off = first_off + 64 * n_words
    cdef int64_t row_blocks = group.chunk * group.n_data
    cdef int64_t chunk_start = first_off // row_blocks * row_blocks + position * group.chunk
    # what to add to an offset to get the dbn, in the current chunk
    cdef int64_t dbn_less_off = first_off // row_blocks * group.chunk - chunk_start
    cdef int64_t off, chunk_stop, bit, length
    cdef int64_t n = 0
    # the open run: dbn where it began, dbn where it ends so far
    cdef int64_t run_start = -1
    cdef int64_t run_stop = -1
    cdef int64_t run_place = 0
    cdef uint64_t word
    while chunk_start < stop_off:
        off = max(chunk_start, first_off)
        chunk_stop = min(chunk_start + group.chunk, stop_off)
        if not merge and run_start >= 0:
            if dbn != NULL:
                dbn[n], n_blocks[n], place[n] = run_start, run_stop - run_start, run_place
            n += 1
            run_start = run_stop = -1
        while off < chunk_stop:
            word = words[(off - first_off) >> 6]
            bit = 0
            while word:
                length = bp_ctz64(word)
                bit += length
                word >>= length
                length = bp_ctz64(~word) if ~word else 64
                if run_stop != off + bit + dbn_less_off:
                    if run_start >= 0:
                        if dbn != NULL:
                            dbn[n], n_blocks[n], place[n] = run_start, run_stop - run_start, run_place
                        n += 1
                    run_start = off + bit + dbn_less_off
                    run_place = group.first + off + bit
                run_stop = off + bit + length + dbn_less_off
                bit += length
                # a shift by 64 is undefined
                word = word >> length if length < 64 else 0
            off += 64
        chunk_start += row_blocks
        dbn_less_off += group.chunk - row_blocks
    if run_start >= 0:
        if dbn != NULL:
            dbn[n], n_blocks[n], place[n] = run_start, run_stop - run_start, run_place
        n += 1
    return n


def to_disk(
    const int64_t[:, ::1] groups, const int64_t[::1] members, const int64_t[::1] places,
    int64_t[::1] disk, int64_t[::1] dbn,
):
    """Disk index and dbn of each place. Returns the index of the first place outside every group, or -1."""
    cdef int64_t n = places.shape[0]
    cdef int64_t code = n
    check_groups(groups, members)
    if disk.shape[0] != n or dbn.shape[0] != n:
        raise ValueError(f"disk, dbn: {disk.shape[0]}, {dbn.shape[0]} entries for {n} places")
    if n == 0:
        return -1
    if groups.shape[0] == 0:
        return 0
    with nogil:
        code = split_places(&groups[0, 0], groups.shape[0], &places[0], n, &members[0], &disk[0], &dbn[0])
    return -1 - code if code < 0 else -1


def from_disk(
    const int64_t[:, ::1] groups, const int64_t[::1] members, const int64_t[:, ::1] homes,
    const int64_t[::1] disk, const int64_t[::1] dbn, int64_t[::1] places,
):
    """Place of each (disk index, dbn); homes[disk] = group row, position in the group.

    Returns the index of the first pair that has no place (no such disk, a parity disk, beyond the end), or -1.
    """
    cdef int64_t n = disk.shape[0]
    cdef int64_t i, g
    cdef int64_t bad = -1
    cdef Group group
    check_groups(groups, members)
    if dbn.shape[0] != n or places.shape[0] != n or homes.shape[1] != 2:
        raise ValueError("disk, dbn and places differ in length, or homes has not two columns")
    with nogil:
        for i in range(n):
            if not 0 <= disk[i] < homes.shape[0]:
                bad = i
                break
            g = homes[disk[i], 0]
            if not 0 <= g < groups.shape[0]:
                bad = i
                break
            group = group_of(&groups[g, 0])
            if not (0 <= homes[disk[i], 1] < group.n_data and 0 <= dbn[i] < group.disk_blocks):
                bad = i
                break
            places[i] = (
                group.first
                + (dbn[i] // group.chunk * group.n_data + homes[disk[i], 1]) * group.chunk
                + dbn[i] % group.chunk
            )
    return bad


def count_pieces(const int64_t[:, ::1] groups, const int64_t[::1] members, const int64_t[:, ::1] extents):
    """Pieces into which extents of places fall at chunk borders; -1 - i when extent i is outside every group."""
    cdef int64_t n = 0
    check_groups(groups, members)
    if extents.shape[1] != 2:
        raise ValueError(f"extents: {extents.shape[1]} columns, not 2")
    if extents.shape[0] == 0:
        return 0
    if groups.shape[0] == 0:
        return -1
    with nogil:
        n = split(
            &groups[0, 0], groups.shape[0], &extents[0, 0], extents.shape[0], &members[0], NULL, NULL, NULL, NULL
        )
    return n


def split_extents(
    const int64_t[:, ::1] groups, const int64_t[::1] members, const int64_t[:, ::1] extents,
    int64_t[::1] disk, int64_t[::1] dbn, int64_t[::1] n_blocks, int64_t[::1] position,
):
    """Write the pieces that `count_pieces` counted; position counts blocks from the start of the first extent."""
    cdef int64_t n = count_pieces(groups, members, extents)
    if n < 0:
        raise IndexError(f"extent {-1 - n} lies outside every group")
    if disk.shape[0] != n or dbn.shape[0] != n or n_blocks.shape[0] != n or position.shape[0] != n:
        raise ValueError(f"out: not {n} entries each")
    if n:
        with nogil:
            split(
                &groups[0, 0], groups.shape[0], &extents[0, 0], extents.shape[0], &members[0],
                &disk[0], &dbn[0], &n_blocks[0], &position[0],
            )
    return n


cdef int64_t split_in_bands(
    const int64_t* groups, int64_t n_groups, const int64_t* extents, int64_t n, int64_t n_stripes,
    int64_t* out, int64_t capacity,
) noexcept nogil:
    """See split_bands; -1 - i: extent i is outside; capacity + 1: there are more rows than that."""
    cdef int64_t i, start, stop, band, offset, length
    cdef int64_t n_rows = 0
    cdef int64_t g = 0
    cdef int64_t* row = NULL
    cdef Group group
    cdef Spot spot
    for i in range(n):
        start, stop = extents[2 * i], extents[2 * i + 1]
        if stop < start:
            return -1 - i
        while start < stop:
            g = find_group(groups, n_groups, start, g)
            if g < 0:
                return -1 - i
            group = group_of(groups + g * ROW_FIELDS)
            spot = spot_of(group, start)
            band = spot.dbn // n_stripes
            length = min(min(spot.left, (band + 1) * n_stripes - spot.dbn), stop - start)
            offset = spot.member * min(n_stripes, group.disk_blocks - band * n_stripes)
            offset += spot.dbn - band * n_stripes
            if row != NULL and row[0] == g and row[1] == band and row[2] + row[3] == offset:
                row[3] += length
            else:
                if n_rows == capacity:
                    return capacity + 1
                row = out + 4 * n_rows
                row[0], row[1], row[2], row[3] = g, band, offset, length
                n_rows += 1
            start += length
    return n_rows


def split_bands(
    const int64_t[:, ::1] groups, const int64_t[::1] members, const int64_t[:, ::1] extents, int64_t n_stripes,
    int64_t[:, ::1] out,
):
    """Write where extents of places fall in bands of n_stripes: group, band, slot in it, count; return how many rows.

    The slots of a band are disk by disk; those that follow each other in one band are one row. One more than out has:
    they do not fit. -1 - i: extent i is outside every group.
    """
    cdef int64_t n = 0, n_rows = out.shape[0]
    check_groups(groups, members)
    if extents.shape[1] != 2 or out.shape[1] != 4 or n_stripes < 1:
        raise ValueError(f"extents of {extents.shape[1]} columns, rows of {out.shape[1]}, bands of {n_stripes} stripes")
    if extents.shape[0] == 0:
        return 0
    if groups.shape[0] == 0:
        return -1
    with nogil:
        n = split_in_bands(
            &groups[0, 0], groups.shape[0], &extents[0, 0], extents.shape[0], n_stripes,
            &out[0, 0] if n_rows else NULL, n_rows,
        )
    return n


cdef Group window_group(const int64_t[::1] row, int64_t first, int64_t n_words) except *:
    cdef Group group
    if row.shape[0] != ROW_FIELDS or not (row[1] > 0 and row[3] > 0):
        raise ValueError("group: not a row of the group table")
    group = group_of(&row[0])
    if (first - group.first) % 64 or not group.first <= first:
        raise ValueError("window: does not begin at a word of the group")
    if n_words > (group.n_data * group.disk_blocks - (first - group.first)) // 64:
        raise ValueError("window: ends beyond the group")
    return group


def count_window_extents(
    const int64_t[::1] group_row, int64_t first, const uint64_t[::1] words, bint merge, int64_t[::1] counts
):
    """Runs per data disk in a window of a plane of places that begins at place `first`, into counts (n_data)."""
    cdef int64_t d
    cdef Group group = window_group(group_row, first, words.shape[0])
    if counts.shape[0] != group.n_data:
        raise ValueError(f"counts: {counts.shape[0]} entries for {group.n_data} data disks")
    if words.shape[0] == 0:
        counts[:] = 0
        return
    with nogil:
        for d in range(group.n_data):
            counts[d] = extents_of_disk(
                group, d, first - group.first, &words[0], words.shape[0], merge, NULL, NULL, NULL
            )


def window_extents(
    const int64_t[::1] group_row, int64_t first, const uint64_t[::1] words, bint merge, const int64_t[::1] counts,
    int64_t[::1] dbn, int64_t[::1] n_blocks, int64_t[::1] place,
):
    """Write the runs that `count_window_extents` counted, disk after disk, each disk's ascending in dbn.

    merge: runs go on across chunks that touch on the disk (their places do not); place is that of the first block.
    """
    cdef int64_t d
    cdef int64_t at = 0
    cdef int64_t total = 0
    cdef int64_t found = 0
    cdef Group group = window_group(group_row, first, words.shape[0])
    if counts.shape[0] != group.n_data:
        raise ValueError(f"counts: {counts.shape[0]} entries for {group.n_data} data disks")
    for d in range(group.n_data):
        found = 0
        if words.shape[0]:
            found = extents_of_disk(
                group, d, first - group.first, &words[0], words.shape[0], merge, NULL, NULL, NULL
            )
        if counts[d] != found:
            raise ValueError("counts: not those of this window")
        total += counts[d]
    if dbn.shape[0] != total or n_blocks.shape[0] != total or place.shape[0] != total:
        raise ValueError(f"out: not {total} entries each")
    if total == 0:
        return
    with nogil:
        for d in range(group.n_data):
            if counts[d]:
                extents_of_disk(
                    group, d, first - group.first, &words[0], words.shape[0], merge,
                    &dbn[at], &n_blocks[at], &place[at],
                )
                at += counts[d]


def stripe_busy(const uint64_t[::1] words, int64_t n_data, int64_t chunk_words, uint64_t[::1] out):
    """OR whole rows of a plane of places into a bitmap over their stripes: out[dbn // 64] bit dbn % 64.

    words begins at a row of the group and holds n_data * len(out) words; out is added to, not cleared.
    """
    cdef int64_t n = out.shape[0]
    cdef int64_t row, d, k
    cdef const uint64_t* source
    if n_data < 1 or chunk_words < 1 or n % chunk_words or words.shape[0] != n * n_data:
        raise ValueError(f"words: {words.shape[0]} are not {n} stripes' words of {n_data} disks in whole rows")
    if n == 0:
        return
    with nogil:
        for row in range(n // chunk_words):
            for d in range(n_data):
                source = &words[(row * n_data + d) * chunk_words]
                for k in range(chunk_words):
                    out[row * chunk_words + k] |= source[k]


def disk_words(const uint64_t[::1] words, int64_t chunk_words, uint64_t[:, ::1] out):
    """Whole rows of a plane of places, disk by disk: out[d, dbn // 64] for every data disk d."""
    cdef int64_t n_data = out.shape[0]
    cdef int64_t n = out.shape[1]
    cdef int64_t row, d, k
    if n_data < 1 or chunk_words < 1 or n % chunk_words or words.shape[0] != n * n_data:
        raise ValueError(f"words: {words.shape[0]} are not {n} stripes' words of {n_data} disks in whole rows")
    with nogil:
        for row in range(n // chunk_words):
            for d in range(n_data):
                for k in range(chunk_words):
                    out[d, row * chunk_words + k] = words[(row * n_data + d) * chunk_words + k]
