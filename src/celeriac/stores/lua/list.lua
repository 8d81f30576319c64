-- A slice of a list of records, newest first: as many as match among the next few.
--
-- ARGV[2]: the number below which to begin, '' for the newest; ARGV[3]: how many to find at most; ARGV[4]: how many to
-- look at at most; ARGV[5] to ARGV[8]: state, name, queue, owner, each as '=value' or ''; ARGV[9] and ARGV[10]: since
-- and until (microseconds) or ''; then texts of which one must occur, in small letters.
-- Gives the number to go on below, or false at the end; then id, record and Celery's result of each.

local wanted, budget = tonumber(ARGV[3]), tonumber(ARGV[4])
local since, limit = tonumber(ARGV[9]), tonumber(ARGV[10])

-- Bytes that a slice reads, or in which it searches, before others have their turn.
local MOST_BYTES = 2000000

-- Up to so many records of one index are put in order at once; of more, some will be found soon among all.
local FEW = 2000

local CHUNK = 100

local equal = {}
local key, size
for position, filter in ipairs({ { STATE, ':state:' }, { NAME, ':name:' }, { QUEUE, ':queue:' }, { OWNER, ':owner:' } }) do
  local given = ARGV[4 + position]
  if given ~= '' then
    local value = sub(given, 2)
    local members = call('SCARD', INDEX .. filter[2] .. value)
    equal[filter[1]] = value
    if not size or members < size then
      key, size = INDEX .. filter[2] .. value, members
    end
  end
end

-- A number is never below the time of enqueueing, and never further ahead of it than the lead.
local top, bottom = tonumber(ARGV[2]) or math.huge, since or -math.huge
if limit then
  top = math.min(top, limit + (tonumber(call('HGET', NUMBERS, 'lead')) or 0))
end

local function score(value)
  if value == math.huge then
    return '+inf'
  end
  return value == -math.huge and '-inf' or string.format('%.0f', value)
end

local bytes = 0

local function has_needle(row, id)
  if #ARGV < 11 then
    return true
  end
  for _, text in ipairs({ id, row[NAME], row[ARGS], row[KWARGS] }) do
    bytes = bytes + #text
    local lowered = string.lower(text)
    for index = 11, #ARGV do
      if find(lowered, ARGV[index], 1, true) then
        return true
      end
    end
  end
  return false
end

local function matches(row, id)
  for place, value in pairs(equal) do
    if row[place] ~= value then
      return false
    end
  end
  if since or limit then
    local enqueued = tonumber(row[ENQUEUED])
    if not enqueued or (since and enqueued < since) or (limit and enqueued >= limit) then
      return false
    end
  end
  return has_needle(row, id)
end

local answer = { false }

-- Look at records, newest first: { number, id } each. Whether all of them were looked at; if not, from where to go on.
local function inspect(members)
  for position, member in ipairs(members) do
    local id = member[2]
    local kept = call('GET', TASK .. id)
    local row = kept and unpacked(kept)
    bytes = bytes + #(kept or '')
    if row and matches(row, id) then
      local text = call('GET', META .. id)
      if text or not READY[row[STATE]] then
        bytes = bytes + #(text or '')
        answer[#answer + 1] = { id, row, text }
      end
    end
    if (#answer > wanted or bytes >= MOST_BYTES) and position < #members then
      return false, member[1]
    end
  end
  return true
end

local function newer(one, other)
  return one[1] > other[1]
end

-- The members of a small index, in order.
local function sorted()
  local ids = call('SMEMBERS', key)
  if #ids == 0 then
    return ids
  end
  local members = {}
  for index, number in ipairs(call('ZMSCORE', INDEX, unpack(ids))) do
    number = tonumber(number)
    if not number then
      call('SREM', key, ids[index])
    elseif number < top and number >= bottom then
      members[#members + 1] = { number, ids[index] }
    end
  end
  table.sort(members, newer)
  return members
end

local function slice(first)
  local found = call('ZREVRANGEBYSCORE', INDEX, first, score(bottom), 'WITHSCORES', 'LIMIT', 0, CHUNK)
  local members = {}
  for index = 1, #found, 2 do
    members[#members + 1] = { tonumber(found[index + 1]), found[index] }
  end
  return members
end

if size and size <= FEW then
  local all, number = inspect(sorted())
  answer[1] = not all and score(number)
  return answer
end

local first = '(' .. score(top)
for _ = 1, budget, CHUNK do
  local members = slice(first)
  local all, number = inspect(members)
  if not all then
    answer[1] = score(number)
    return answer
  end
  if #members < CHUNK then
    answer[1] = false
    return answer
  end
  first = '(' .. score(members[CHUNK][1])
  answer[1] = score(members[CHUNK][1])
  if #answer > wanted or bytes >= MOST_BYTES then
    return answer
  end
end
return answer
