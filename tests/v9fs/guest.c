/* What a program expects of a file system, run in the guest on a mount of the Linux kernel's v9fs.
 *
 *     guest CASE DIR SEEN FAR
 *
 * DIR is an empty directory of the mount under test. FAR is the same directory through another connection, without a
 * cache: another client. SEEN is where what was done must be seen at once: FAR, or DIR if its mount writes back later.
 * The case leaves DIR empty. Exit status 0, or 1 with what went wrong on stderr.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static const char *seen_at, *far_at;

static void fail(int line, const char *what) {
    fprintf(stderr, "line %d: %s (%s)", line, what, strerror(errno));
    exit(1);
}

/* Holds, or ends the case. errno is that of the last call, whether or not it has to do with it. */
#define HOLDS(what) do { if (!(what)) fail(__LINE__, #what); } while (0)
/* Fails with this error. */
#define REFUSED(error, call) do { errno = 0; HOLDS((call) < 0); HOLDS(errno == (error)); } while (0)

static int make(const char *name, const char *text) {
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0644);
    HOLDS(fd >= 0);
    HOLDS(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    return fd;
}

static void put(const char *name, const char *text) {
    HOLDS(close(make(name, text)) == 0);
}

static void is(const char *name, const char *text) {
    char got[256];
    int fd = open(name, O_RDONLY);
    HOLDS(fd >= 0);
    ssize_t n = read(fd, got, sizeof got);
    HOLDS(n == (ssize_t)strlen(text) && memcmp(got, text, n) == 0);
    HOLDS(close(fd) == 0);
}

static const char *in(const char *dir, const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* The same file where it must look the same. */
static const char *there(const char *name) {
    return in(seen_at, name);
}

/* The same file as another client's. */
static int far_open(const char *name) {
    int fd = open(in(far_at, name), O_RDWR);
    HOLDS(fd >= 0);
    return fd;
}

static void create(void) {
    struct stat st;
    put("a", "one");
    REFUSED(EEXIST, open("a", O_CREAT | O_EXCL | O_WRONLY, 0600));
    is("a", "one");
    is(there("a"), "one");
    int fd = open("b", O_CREAT | O_WRONLY, 0444);
    HOLDS(fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
    HOLDS(stat("b", &st) == 0 && (st.st_mode & 07777) == 0444 && st.st_size == 1);
    REFUSED(ENOENT, open("c", O_RDONLY));
    HOLDS(unlink("a") == 0 && unlink("b") == 0);
    REFUSED(ENOENT, unlink("a"));
}

static void directories(void) {
    struct stat st;
    HOLDS(mkdir("d", 0750) == 0);
    REFUSED(EEXIST, mkdir("d", 0750));
    HOLDS(stat("d", &st) == 0 && S_ISDIR(st.st_mode) && (st.st_mode & 0777) == 0750);
    put("d/f", "x");
    REFUSED(ENOTEMPTY, rmdir("d"));
    HOLDS(unlink("d/f") == 0 && rmdir("d") == 0);
    REFUSED(ENOENT, rmdir("d"));
}

static void listing(void) {
    char name[32], seen[500] = {0};
    int n = 0;
    for (int i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "entry %d", i);
        put(name, "");
    }
    DIR *dir = opendir(".");
    HOLDS(dir);
    for (struct dirent *e; (e = readdir(dir));) {
        int i;
        if (e->d_name[0] == '.') continue;
        HOLDS(sscanf(e->d_name, "entry %d", &i) == 1 && i >= 0 && i < 500 && !seen[i]);
        seen[i] = 1;
        n++;
    }
    HOLDS(n == 500 && closedir(dir) == 0);
    for (int i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "entry %d", i);
        HOLDS(unlink(name) == 0);
    }
}

static void names(void) {
    char name[257] = {0};
    memset(name, 0xe9, 255);
    name[3] = '\n', name[4] = ' ', name[5] = '\\', name[6] = '\x01';
    put(name, "odd");
    is(there(name), "odd");
    HOLDS(unlink(name) == 0);
    name[255] = 'x';
    REFUSED(ENAMETOOLONG, open(name, O_CREAT | O_WRONLY, 0600));
}

static void renaming(void) {
    struct stat st;
    int fd = make("a", "one");
    HOLDS(rename("a", "b") == 0);
    HOLDS(pwrite(fd, "TWO", 3, 0) == 3 && close(fd) == 0);
    is("b", "TWO");
    is(there("b"), "TWO");
    HOLDS(mkdir("d", 0755) == 0 && rename("d", "e") == 0 && stat("e", &st) == 0 && S_ISDIR(st.st_mode));
    REFUSED(ENOENT, rename("a", "z"));
    HOLDS(rmdir("e") == 0 && unlink("b") == 0);
}

static void replacing(void) {
    put("a", "over");
    int fd = make("b", "under");
    HOLDS(rename("a", "b") == 0);
    is("b", "over");
    is(there("b"), "over");
    HOLDS(pwrite(fd, "U", 1, 0) == 1 && close(fd) == 0);
    is("b", "over");
    HOLDS(unlink("b") == 0);
    REFUSED(ENOENT, unlink("a"));
}

/* 9P2000 has a name that is taken refused, and no other message by which it could be asked for. */
static void refusing(void) {
    put("a", "one");
    put("b", "two");
    REFUSED(EEXIST, rename("a", "b"));
    is("a", "one");
    is("b", "two");
    HOLDS(unlink("a") == 0 && unlink("b") == 0);
}

static void moving(void) {
    HOLDS(mkdir("d", 0755) == 0 && mkdir("e", 0755) == 0);
    put("d/f", "moved");
    HOLDS(rename("d/f", "e/g") == 0);
    is("e/g", "moved");
    is(there("e/g"), "moved");
    HOLDS(rename("e", "d/e") == 0);
    HOLDS(chmod("d/e/g", 0600) == 0 && truncate("d/e/g", 3) == 0);
    is("d/e/g", "mov");
    put("d/e/h", "x");
    put("d/h", "x");
    REFUSED(ENOTEMPTY, rmdir("d"));
    HOLDS(unlink("d/h") == 0 && unlink("d/e/h") == 0 && unlink("d/e/g") == 0 && rmdir("d/e") == 0 && rmdir("d") == 0);
}

static void links(void) {
    struct stat one, two;
    put("a", "one");
    HOLDS(link("a", "b") == 0);
    HOLDS(stat("a", &one) == 0 && stat("b", &two) == 0);
    HOLDS(one.st_ino == two.st_ino && one.st_nlink == 2 && two.st_nlink == 2);
    HOLDS(unlink("a") == 0);
    is("b", "one");
    HOLDS(stat("b", &two) == 0 && two.st_nlink == 1);
    HOLDS(unlink("b") == 0);
}

static void symlinks(void) {
    char target[64];
    struct stat st;
    put("a", "one");
    HOLDS(symlink("a", "l") == 0);
    HOLDS(lstat("l", &st) == 0 && S_ISLNK(st.st_mode));
    HOLDS(readlink("l", target, sizeof target) == 1 && target[0] == 'a');
    is("l", "one");
    REFUSED(EEXIST, symlink("b", "l"));
    REFUSED(ELOOP, open("l", O_RDONLY | O_NOFOLLOW));
    HOLDS(unlink("l") == 0);
    is("a", "one");
    HOLDS(unlink("a") == 0);
}

static void attributes(void) {
    struct stat st;
    struct timespec times[2] = {{1000000000, 0}, {1100000000, 0}};
    put("a", "0123456789");
    HOLDS(chmod("a", 0640) == 0 && stat("a", &st) == 0 && (st.st_mode & 07777) == 0640);
    HOLDS(utimensat(AT_FDCWD, "a", times, 0) == 0 && stat("a", &st) == 0);
    HOLDS(st.st_atime == 1000000000 && st.st_mtime == 1100000000);
    HOLDS(truncate("a", 4) == 0);
    is("a", "0123");
    is(there("a"), "0123");
    int fd = open("a", O_RDWR);
    HOLDS(fd >= 0 && ftruncate(fd, 6) == 0 && fstat(fd, &st) == 0 && st.st_size == 6 && close(fd) == 0);
    HOLDS(stat("a", &st) == 0 && st.st_size == 6);
    fd = open("a", O_WRONLY | O_TRUNC);
    HOLDS(fd >= 0 && close(fd) == 0);
    is(there("a"), "");
    HOLDS(unlink("a") == 0);
}

static void owners(void) {
    struct stat st;
    put("a", "x");
    HOLDS(chown("a", 1234, 2345) == 0 && stat("a", &st) == 0 && st.st_uid == 1234 && st.st_gid == 2345);
    HOLDS(stat(there("a"), &st) == 0 && st.st_uid == 1234 && st.st_gid == 2345);
    HOLDS(unlink("a") == 0);
}

static void appending(void) {
    put("a", "one\n");
    int fd = open("a", O_WRONLY | O_APPEND), far = open(there("a"), O_WRONLY | O_APPEND);
    HOLDS(fd >= 0 && far >= 0);
    HOLDS(write(fd, "two\n", 4) == 4 && fsync(fd) == 0 && close(fd) == 0);
    HOLDS(write(far, "three\n", 6) == 6 && close(far) == 0);
    is(there("a"), "one\ntwo\nthree\n");
    HOLDS(unlink("a") == 0);
}

static void sparse(void) {
    struct stat st;
    char got[4] = "xxx";
    const off_t far = 5LL << 30;
    int fd = open("a", O_RDWR | O_CREAT | O_EXCL, 0600);
    HOLDS(fd >= 0 && pwrite(fd, "end", 3, far) == 3 && fsync(fd) == 0);
    HOLDS(pread(fd, got, 3, far - 1000) == 3 && got[0] == 0 && got[1] == 0 && got[2] == 0);
    HOLDS(pread(fd, got, 3, far) == 3 && memcmp(got, "end", 3) == 0);
    HOLDS(fstat(fd, &st) == 0 && st.st_size == far + 3 && close(fd) == 0);
    HOLDS(stat(there("a"), &st) == 0 && st.st_size == far + 3);
    /* A cache that writes back counts the blocks itself, and wrongly. */
    HOLDS(st.st_blocks < 10000 || strcmp(seen_at, far_at) != 0);
    HOLDS(unlink("a") == 0);
}

static void unlinked(void) {
    char got[16];
    int fd = make("a", "kept");
    HOLDS(unlink("a") == 0);
    REFUSED(ENOENT, open("a", O_RDONLY));
    HOLDS(pwrite(fd, "KE", 2, 0) == 2 && fsync(fd) == 0);
    HOLDS(pread(fd, got, sizeof got, 0) == 4 && memcmp(got, "KEpt", 4) == 0);
    HOLDS(ftruncate(fd, 2) == 0 && pread(fd, got, sizeof got, 0) == 2);
    HOLDS(close(fd) == 0);
}

static void mapped(void) {
    char page[4096];
    memset(page, 'a', sizeof page);
    int fd = open("a", O_RDWR | O_CREAT | O_EXCL, 0600);
    HOLDS(fd >= 0);
    for (int i = 0; i < 16; i++) HOLDS(write(fd, page, sizeof page) == sizeof page);
    char *map = mmap(NULL, 16 * sizeof page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    HOLDS(map != MAP_FAILED && map[0] == 'a' && map[65535] == 'a');
    memcpy(map + 5000, "mapped", 6);
    map[65535] = 'z';
    HOLDS(msync(map, 16 * sizeof page, MS_SYNC) == 0);
    HOLDS(munmap(map, 16 * sizeof page) == 0 && close(fd) == 0);
    char got[7] = {0};
    fd = open(there("a"), O_RDONLY);
    HOLDS(fd >= 0 && pread(fd, got, 6, 5000) == 6 && strcmp(got, "mapped") == 0);
    HOLDS(pread(fd, got, 6, 65535) == 1 && got[0] == 'z' && close(fd) == 0);
    HOLDS(unlink("a") == 0);
}

static void mapped_to_read(void) {
    put("a", "mapped");
    int fd = open("a", O_RDONLY);
    char *map = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    HOLDS(map != MAP_FAILED && memcmp(map, "mapped\0", 7) == 0 && munmap(map, 4096) == 0 && close(fd) == 0);
    HOLDS(unlink("a") == 0);
}

static void statfs_(void) {
    struct statfs fs;
    HOLDS(statfs(".", &fs) == 0 && fs.f_bsize > 0 && fs.f_blocks > 0 && fs.f_namelen == 255);
}

static void xattrs(void) {
    char got[64], big[3000];
    put("a", "x");
    HOLDS(setxattr("a", "user.one", "1", 1, XATTR_CREATE) == 0);
    REFUSED(EEXIST, setxattr("a", "user.one", "1", 1, XATTR_CREATE));
    REFUSED(ENODATA, setxattr("a", "user.two", "2", 1, XATTR_REPLACE));
    memset(big, 'b', sizeof big);
    HOLDS(setxattr("a", "user.big", big, sizeof big, 0) == 0);
    HOLDS(getxattr("a", "user.one", got, sizeof got) == 1 && got[0] == '1');
    HOLDS(getxattr(there("a"), "user.big", NULL, 0) == sizeof big);
    REFUSED(ERANGE, getxattr("a", "user.big", got, sizeof got));
    ssize_t n = listxattr("a", got, sizeof got);
    HOLDS(n >= 18 && memmem(got, n, "user.one", 9) && memmem(got, n, "user.big", 9));
    HOLDS(removexattr("a", "user.one") == 0);
    REFUSED(ENODATA, getxattr("a", "user.one", got, sizeof got));
    HOLDS(setxattr("a", "user.big", "", 0, 0) == 0 && getxattr("a", "user.big", got, sizeof got) == 0);
    HOLDS(unlink("a") == 0);
}

static void devices(void) {
    struct stat st;
    HOLDS(mkfifo("p", 0640) == 0 && lstat("p", &st) == 0 && S_ISFIFO(st.st_mode) && (st.st_mode & 0777) == 0640);
    HOLDS(mknod("s", S_IFSOCK | 0600, 0) == 0 && lstat("s", &st) == 0 && S_ISSOCK(st.st_mode));
    HOLDS(mknod("r", S_IFREG | 0600, 0) == 0 && lstat("r", &st) == 0 && S_ISREG(st.st_mode));
    HOLDS(mknod("n", S_IFCHR | 0600, makedev(1, 3)) == 0 && lstat("n", &st) == 0);
    HOLDS(S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3));
    int fd = open("n", O_WRONLY);
    HOLDS(fd >= 0 && write(fd, "gone", 4) == 4 && close(fd) == 0);
    HOLDS(unlink("p") == 0 && unlink("s") == 0 && unlink("r") == 0 && unlink("n") == 0);
}

static int lock(int fd, int command, short kind, off_t start, off_t length) {
    struct flock lock = {.l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(fd, command, &lock);
}

static void locks(void) {
    int fd = make("a", "0123456789"), far = far_open("a");
    HOLDS(lock(fd, F_SETLK, F_WRLCK, 2, 4) == 0);
    REFUSED(EAGAIN, lock(far, F_SETLK, F_RDLCK, 5, 1));
    HOLDS(lock(far, F_SETLK, F_WRLCK, 6, 0) == 0 && lock(far, F_SETLK, F_WRLCK, 0, 2) == 0);
    REFUSED(EAGAIN, lock(fd, F_SETLK, F_RDLCK, 100, 1));
    struct flock seen = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1000, .l_len = 5};
    HOLDS(fcntl(fd, F_GETLK, &seen) == 0 && seen.l_type == F_WRLCK && seen.l_start == 6 && seen.l_len == 0);
    HOLDS(lock(fd, F_SETLK, F_RDLCK, 2, 2) == 0 && lock(far, F_SETLK, F_RDLCK, 2, 2) == 0);
    REFUSED(EAGAIN, lock(far, F_SETLK, F_RDLCK, 4, 1));
    /* What is closed holds no lock. */
    HOLDS(close(fd) == 0 && lock(far, F_SETLK, F_WRLCK, 0, 0) == 0 && close(far) == 0);
    HOLDS(unlink("a") == 0);
}

static void whole_locks(void) {
    int fd = make("a", "x"), far = far_open("a");
    HOLDS(flock(fd, LOCK_EX) == 0);
    REFUSED(EWOULDBLOCK, flock(far, LOCK_SH | LOCK_NB));
    HOLDS(flock(fd, LOCK_UN) == 0 && flock(far, LOCK_SH | LOCK_NB) == 0 && flock(fd, LOCK_SH | LOCK_NB) == 0);
    REFUSED(EWOULDBLOCK, flock(fd, LOCK_EX | LOCK_NB));
    HOLDS(close(far) == 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 && close(fd) == 0);
    HOLDS(unlink("a") == 0);
}

/* A child that waits for the lock on all of FAR's "a", writes there, and ends. */
static pid_t waits_for_lock(void) {
    char path[64], call[8];
    pid_t child = fork();
    if (child == 0) {
        int far = far_open("a");
        HOLDS(lock(far, F_SETLKW, F_WRLCK, 0, 0) == 0 && pwrite(far, "c", 1, 0) == 1 && close(far) == 0);
        exit(0);
    }
    HOLDS(child > 0);
    snprintf(path, sizeof path, "/proc/%d/syscall", child);
    /* 72 is fcntl(2): it is in there, asleep. */
    do {
        usleep(10000);
        int fd = open(path, O_RDONLY);
        HOLDS(fd >= 0);
        memset(call, 0, sizeof call);
        HOLDS(read(fd, call, sizeof call - 1) > 0 && close(fd) == 0);
    } while (strncmp(call, "72 ", 3) != 0);
    return child;
}

/* Who waits for a lock gets it when it is let go of; who is killed meanwhile does not. */
static void waiting_locks(void) {
    int fd = make("a", "x"), status;
    HOLDS(lock(fd, F_SETLK, F_WRLCK, 0, 0) == 0);
    pid_t killed = waits_for_lock();
    HOLDS(kill(killed, SIGKILL) == 0 && waitpid(killed, &status, 0) == killed && WIFSIGNALED(status));
    pid_t waits = waits_for_lock();
    HOLDS(lock(fd, F_SETLK, F_UNLCK, 0, 0) == 0);
    HOLDS(waitpid(waits, &status, 0) == waits && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    HOLDS(lock(fd, F_SETLK, F_WRLCK, 0, 0) == 0);
    HOLDS(close(fd) == 0 && unlink("a") == 0);
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"create", create},
    {"directories", directories},
    {"listing", listing},
    {"names", names},
    {"renaming", renaming},
    {"replacing", replacing},
    {"refusing", refusing},
    {"moving", moving},
    {"links", links},
    {"symlinks", symlinks},
    {"attributes", attributes},
    {"owners", owners},
    {"appending", appending},
    {"sparse", sparse},
    {"unlinked", unlinked},
    {"mapped", mapped},
    {"mapped-to-read", mapped_to_read},
    {"statfs", statfs_},
    {"xattrs", xattrs},
    {"devices", devices},
    {"locks", locks},
    {"whole-locks", whole_locks},
    {"waiting-locks", waiting_locks},
};

int main(int argc, char **argv) {
    if (argc != 5 || chdir(argv[2]) != 0) fail(__LINE__, "guest CASE DIR SEEN FAR");
    seen_at = argv[3];
    far_at = argv[4];
    umask(0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(cases[i].name, argv[1]) == 0) {
            cases[i].run();
            return 0;
        }
    }
    errno = 0;
    fail(__LINE__, "no such case");
}
