/* Remembers of each file what fsync has promised, so that a loss of power can be played after SIGKILL.

LD_PRELOAD this library with LOST_WRITES_ROOT (the folder that is watched, a real path) and LOST_WRITES_SHADOW (an empty folder)
set. Each fsync or fdatasync of a file below the root copies its content to SHADOW/inodes/NUMBER; one of a
folder writes the names in it, with inode number and kind, to SHADOW/folders/NUMBER, where NUMBER is the folder's
own. Content that was never synced, and names that were never synced, are not there: benchmarks/power_loss.py
builds from the shadow what a disk that dropped everything else would hold.
*/
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int is_watched(int descriptor) {
    const char *root = getenv("LOST_WRITES_ROOT");
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (root == NULL || length < 0) return 0;
    path[length] = 0;
    return strncmp(path, root, strlen(root)) == 0;
}

/* Open a temporary file of the shadow; `finish` gives it its name, so that SIGKILL leaves the old one or the new. */
static int begin(const char *kind, ino_t number, char *temporary, char *name) {
    const char *shadow = getenv("LOST_WRITES_SHADOW");
    snprintf(name, PATH_MAX, "%s/%s/%lu", shadow, kind, (unsigned long)number);
    snprintf(temporary, PATH_MAX, "%s/%s/.%lu", shadow, kind, (unsigned long)number);
    return open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0600);
}

static void remember(int descriptor) {
    struct stat status;
    char temporary[PATH_MAX], name[PATH_MAX], own[64];
    if (fstat(descriptor, &status) != 0) return;
    int is_folder = S_ISDIR(status.st_mode);
    int target = begin(is_folder ? "folders" : "inodes", status.st_ino, temporary, name);
    if (target < 0) abort();
    snprintf(own, sizeof own, "/proc/self/fd/%d", descriptor);
    if (is_folder) {
        DIR *folder = opendir(own);
        for (struct dirent *entry; folder && (entry = readdir(folder));)
            if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
                dprintf(target, "%lu %c %s\n", (unsigned long)entry->d_ino, entry->d_type == DT_DIR ? 'd' : 'f',
                        entry->d_name);
        if (folder) closedir(folder);
    } else {
        int source = open(own, O_RDONLY);
        off_t at = 0;
        while (source >= 0 && sendfile(target, source, &at, 1 << 30) > 0) {}
        if (source >= 0) close(source);
    }
    close(target);
    rename(temporary, name);
}

static int synced(int descriptor, const char *function) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, function);
    if (!is_watched(descriptor)) return real(descriptor);
    pthread_mutex_lock(&lock);
    remember(descriptor);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int descriptor) { return synced(descriptor, "fsync"); }
int fdatasync(int descriptor) { return synced(descriptor, "fdatasync"); }
