/* Records what a process does to one directory, and makes it fail there: loaded by LD_PRELOAD.
 *
 * RECORD_DIR   the directory (absolute, without a trailing slash); nothing else is touched
 * RECORD_LOG   where to append the record; none: nothing is recorded
 * FAULT_FILE        a file; while it is there, it says what fails: "CLASS ERRNO SKIP", where CLASS is w (writes and
 *                      truncations), s (syncs) or c (anything that changes the directory's content), and SKIP is how
 *                      many such calls still succeed from when the file is first seen. All later ones fail.
 *
 * One record: struct head, path, second path, data. Calls are made and recorded under one lock, so that the order of the
 * record is the order of the calls; each record is one write with O_APPEND, so that another process may add marks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct head {
  uint32_t magic;
  uint32_t kind; /* a letter: C create, K mkdir, W write, T truncate, S sync, R rename, U unlink, X rmdir, M mark */
  uint64_t inode;
  uint64_t offset; /* W: where; T: the new length */
  uint64_t unix_ms;
  uint32_t path_bytes, path2_bytes, data_bytes, padding;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *dir;
static size_t dir_bytes;
static int log_fd = -1;
static const char *fault_path;
static long fault_skip = -1;

__attribute__((constructor)) static void begin(void) {
  dir = getenv("RECORD_DIR");
  dir_bytes = dir ? strlen(dir) : 0;
  fault_path = getenv("FAULT_FILE");
  const char *log = getenv("RECORD_LOG");
  if (log) {
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) abort();
  }
}

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int inside(const char *path) {
  return dir && strncmp(path, dir, dir_bytes) == 0 && (path[dir_bytes] == '/' || path[dir_bytes] == 0);
}

/* Whether the descriptor is of a file or directory inside. */
static int fd_inside(int fd, char *path) {
  char link[32];
  if (!dir) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, 4095);
  if (n < 0) return 0;
  path[n] = 0;
  return inside(path);
}

static uint64_t inode_of_fd(int fd) {
  struct stat st;
  return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

static uint64_t inode_of(const char *path) {
  struct stat st;
  return lstat(path, &st) == 0 ? st.st_ino : 0;
}

static void note(char kind, uint64_t inode, uint64_t offset, const char *path, const char *path2, const void *data,
                 size_t bytes) {
  if (log_fd < 0) return;
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  struct head head = {0x5ec04d15, (uint32_t)kind, inode, offset, now.tv_sec * 1000ull + now.tv_nsec / 1000000,
                      path ? strlen(path) : 0, path2 ? strlen(path2) : 0, bytes, 0};
  struct iovec parts[4] = {{&head, sizeof head},
                           {(void *)path, head.path_bytes},
                           {(void *)path2, head.path2_bytes},
                           {(void *)data, bytes}};
  ssize_t whole = sizeof head + head.path_bytes + head.path2_bytes + bytes;
  if (syscall(SYS_writev, log_fd, parts, 4) != whole) abort(); /* a record with a hole would lie */
}

/* Whether a call of this class must fail now; sets errno. */
static int fails(char class) {
  if (!fault_path) return 0;
  int fd = (int)syscall(SYS_openat, AT_FDCWD, fault_path, O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) {
    fault_skip = -1;
    return 0;
  }
  char text[64] = {0}, wanted;
  int error;
  long skip;
  ssize_t n = syscall(SYS_read, fd, text, sizeof text - 1);
  syscall(SYS_close, fd);
  if (n <= 0 || sscanf(text, "%c %d %ld", &wanted, &error, &skip) != 3 || wanted != class) return 0;
  if (fault_skip < 0) fault_skip = skip;
  if (fault_skip > 0) {
    fault_skip--;
    return 0;
  }
  errno = error;
  return 1;
}

/* The lock of the log keeps calls out while another process holds it: see recording.rs. */
static void lock_all(void) {
  pthread_mutex_lock(&lock);
  while (log_fd >= 0 && syscall(SYS_flock, log_fd, LOCK_EX) != 0 && errno == EINTR) {
  }
}

static void unlock_all(void) {
  int kept = errno;
  if (log_fd >= 0) syscall(SYS_flock, log_fd, LOCK_UN);
  pthread_mutex_unlock(&lock);
  errno = kept;
}

#define LOCK lock_all()
#define UNLOCK unlock_all()

static int open_recorded(int (*real)(int, const char *, int, ...), int at, const char *path, int flags, mode_t mode) {
  if (!(flags & (O_CREAT | O_TRUNC)) || !inside(path)) return real(at, path, flags, mode);
  LOCK;
  uint64_t before = inode_of(path);
  int fd = -1;
  if (!(before == 0 && (flags & O_CREAT) && fails('c'))) fd = real(at, path, flags, mode);
  if (fd >= 0 && before == 0) note('C', inode_of_fd(fd), 0, path, NULL, NULL, 0);
  if (fd >= 0 && before != 0 && (flags & O_TRUNC)) note('T', before, 0, NULL, NULL, NULL, 0);
  UNLOCK;
  return fd;
}

#define MODE \
  mode_t mode = 0; \
  if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }

int openat64(int at, const char *path, int flags, ...) {
  MODE REAL(openat64);
  return open_recorded(real, at, path, flags, mode);
}
int openat(int at, const char *path, int flags, ...) {
  MODE REAL(openat);
  return open_recorded(real, at, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  MODE REAL(openat64);
  return open_recorded(real, AT_FDCWD, path, flags, mode);
}
int open(const char *path, int flags, ...) {
  MODE REAL(openat);
  return open_recorded(real, AT_FDCWD, path, flags, mode);
}

static void wrote(int fd, const void *data, ssize_t n, off_t at) {
  if (n > 0) note('W', inode_of_fd(fd), at, NULL, NULL, data, n);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at) {
  REAL(pwrite64);
  char path[4096];
  if (!fd_inside(fd, path)) return real(fd, data, bytes, at);
  LOCK;
  ssize_t n = fails('w') ? -1 : real(fd, data, bytes, at);
  wrote(fd, data, n, at);
  UNLOCK;
  return n;
}
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) { return pwrite64(fd, data, bytes, at); }

ssize_t write(int fd, const void *data, size_t bytes) {
  REAL(write);
  char path[4096];
  if (!fd_inside(fd, path)) return real(fd, data, bytes);
  LOCK;
  ssize_t n = fails('w') ? -1 : real(fd, data, bytes);
  if (n > 0) wrote(fd, data, n, lseek(fd, 0, SEEK_CUR) - n);
  UNLOCK;
  return n;
}

/* Not used by the store today: a record without them would be wrong, so their use must be seen. */
ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  char path[4096];
  if (fd_inside(fd, path)) abort();
  return real(fd, parts, count);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
  REAL(pwritev);
  char path[4096];
  if (fd_inside(fd, path)) abort();
  return real(fd, parts, count, at);
}
int fallocate64(int fd, int mode, off64_t from, off64_t bytes) {
  REAL(fallocate64);
  char path[4096];
  if (fd_inside(fd, path)) abort();
  return real(fd, mode, from, bytes);
}

int ftruncate64(int fd, off64_t length) {
  REAL(ftruncate64);
  char path[4096];
  if (!fd_inside(fd, path)) return real(fd, length);
  LOCK;
  int done = fails('w') ? -1 : real(fd, length);
  if (done == 0) note('T', inode_of_fd(fd), length, NULL, NULL, NULL, 0);
  UNLOCK;
  return done;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int synced(int (*real)(int), int fd) {
  char path[4096];
  if (!fd_inside(fd, path)) return real(fd);
  LOCK;
  int done = fails('s') ? -1 : real(fd);
  if (done == 0) note('S', inode_of_fd(fd), 0, path, NULL, NULL, 0);
  UNLOCK;
  return done;
}
int fsync(int fd) {
  REAL(fsync);
  return synced(real, fd);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  return synced(real, fd);
}
/* Promises nothing, so it is not recorded; a disk that fails syncs fails it too. */
int sync_file_range(int fd, off64_t from, off64_t bytes, unsigned flags) {
  REAL(sync_file_range);
  char path[4096];
  if (!fd_inside(fd, path)) return real(fd, from, bytes, flags);
  return real(fd, from, bytes, flags);
}

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  if (!inside(path)) return real(path, mode);
  LOCK;
  int done = fails('c') ? -1 : real(path, mode);
  if (done == 0) note('K', inode_of(path), 0, path, NULL, NULL, 0);
  UNLOCK;
  return done;
}

int rename(const char *from, const char *to) {
  REAL(rename);
  if (!inside(from)) return real(from, to);
  LOCK;
  int done = fails('c') ? -1 : real(from, to);
  if (done == 0) note('R', 0, 0, from, to, NULL, 0);
  UNLOCK;
  return done;
}

int unlink(const char *path) {
  REAL(unlink);
  if (!inside(path)) return real(path);
  LOCK;
  int done = fails('c') ? -1 : real(path);
  if (done == 0) note('U', 0, 0, path, NULL, NULL, 0);
  UNLOCK;
  return done;
}

int rmdir(const char *path) {
  REAL(rmdir);
  if (!inside(path)) return real(path);
  LOCK;
  int done = fails('c') ? -1 : real(path);
  if (done == 0) note('X', 0, 0, path, NULL, NULL, 0);
  UNLOCK;
  return done;
}

int unlinkat(int at, const char *name, int flags) {
  REAL(unlinkat);
  char path[8192];
  if (name[0] == '/') {
    snprintf(path, sizeof path, "%s", name);
  } else {
    if (!fd_inside(at, path)) return real(at, name, flags);
    size_t n = strlen(path);
    snprintf(path + n, sizeof path - n, "/%s", name);
  }
  if (!inside(path)) return real(at, name, flags);
  LOCK;
  int done = fails('c') ? -1 : real(at, name, flags);
  if (done == 0) note(flags & AT_REMOVEDIR ? 'X' : 'U', 0, 0, path, NULL, NULL, 0);
  UNLOCK;
  return done;
}
