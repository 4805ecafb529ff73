"""The portable Roaring format's numbers, and the columns of the rows that describe containers."""

cdef enum:
    COOKIE = 12346  # no run containers; u32 count of containers follows
    COOKIE_RUNS = 12347  # low 16 bits; the high 16 hold the count - 1, then a bit a container says "runs"
    OFFSETS_FROM = 4  # with runs, fewer containers than this carry no offset table
    CONTAINER_WORDS = 1024
    CONTAINER_BITS = 65536
    BITSET_BYTES = 8192
    ARRAY_LIMIT = 4096  # more numbers than this are a bitset

cdef enum:  # columns of a row
    KEY = 0
    CARDINALITY = 1
    KIND = 2
    POSITION = 3  # where a serialised container's data begins; its size, in rows measured from words
    ROW = 4

cdef enum:  # values of KIND
    ARRAY = 0
    BITSET = 1
    RUNS = 2
