/* bitsmith: run packed models from C.
 *
 *     bitsmith_session *s = bitsmith_open("model.bitsmith", 0);
 *     if (!s) { fprintf(stderr, "%s\n", bitsmith_last_error()); return 1; }
 *     float *x = malloc(bitsmith_input_len(s) * sizeof *x), *y = malloc(bitsmith_output_len(s) * sizeof *y);
 *     ... fill x: one sample in the network's own layout (NCHW), preprocessed ...
 *     if (bitsmith_run(s, x, 1, y)) fprintf(stderr, "%s\n", bitsmith_last_error());
 *     bitsmith_close(s);
 *
 * A session may be used from any number of threads at once. Link with -lbitsmith_c (and, for the static library, -lpthread -lm -ldl).
 */
#ifndef BITSMITH_H
#define BITSMITH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A model that is ready to run. */
typedef struct bitsmith_session bitsmith_session;

/* The library's version, as in "0.1.0". */
const char *bitsmith_version(void);

/* Opens a packed file with that many threads (0: one per core). NULL where it cannot be opened; bitsmith_last_error says why. */
bitsmith_session *bitsmith_open(const char *path, size_t threads);

/* The same from the bytes of a packed file, which are not needed afterwards. */
bitsmith_session *bitsmith_open_bytes(const void *bytes, size_t len, size_t threads);

/* Floats of one sample of the input, and of the output. 0 for NULL. */
size_t bitsmith_input_len(const bitsmith_session *session);
size_t bitsmith_output_len(const bitsmith_session *session);

/* Writes what the model expects for one image: (pixel * scale - mean[c]) / std[c] for pixels 0..255 in planes, channel by channel.
 * `pixels` and `x` have bitsmith_input_len elements. Returns 0, or -1 where the model says nothing of its preprocessing. */
int bitsmith_preprocess(const bitsmith_session *session, const uint8_t *pixels, float *x);

/* Runs `batch` samples: `x` has batch * bitsmith_input_len floats, `y` gets batch * bitsmith_output_len. Returns 0, or -1 on an
 * error, where y is left as it was. */
int bitsmith_run(const bitsmith_session *session, const float *x, size_t batch, float *y);

/* Frees a session. NULL is allowed. */
void bitsmith_close(bitsmith_session *session);

/* What went wrong in the last call on this thread that failed; "" before any has. Valid until the next failure on this thread. */
const char *bitsmith_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
